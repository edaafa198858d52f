"""The rules of AXI4 and of streams as checkers that watch a bus from the side, cycle by cycle.

It must not know what moves: it judges handshakes, sizes, order and counts. A broken rule is an AssertionError that
names the rule.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Value

KIB_4 = 4096
INCR = 1
EXOKAY = 1
MOST_BEATS = 256

READ = ("arvalid", "arready", "arid", "araddr", "arlen", "arsize", "arburst")
WRITE = ("awvalid", "awready", "awid", "awaddr", "awlen", "awsize", "awburst")
DATA = ("wvalid", "wready", "wdata", "wstrb", "wlast")
BACK = ("rvalid", "rready", "rid", "rdata", "rresp", "rlast")
ANSWER = ("bvalid", "bready", "bid", "bresp")
FULL = (READ, WRITE, DATA, BACK, ANSWER)
LITE = (
    ("arvalid", "arready", "araddr"),
    ("awvalid", "awready", "awaddr"),
    ("wvalid", "wready", "wdata", "wstrb"),
    ("rvalid", "rready", "rdata", "rresp"),
    ("bvalid", "bready", "bresp"),
)


class Handshakes:
    """What is offered and not accepted stays offered, and stays the same."""

    def __init__(self, channels: Sequence[Sequence[str]]) -> None:
        self.channels = channels
        self._held: dict[str, dict[str, int]] = {}

    def see(self, now: Mapping[str, int]) -> list[str]:
        """One cycle; returns the ``valid`` names of the channels on which something was accepted."""
        accepted = []
        for valid, ready, *payload in self.channels:
            offered = {name: now[name] for name in payload}
            before = self._held.pop(valid, None)
            if before is not None:
                assert now[valid], f"{valid} fell before {ready} came"
                changed = [name for name in payload if before[name] != offered[name]]
                assert not changed, f"{', '.join(changed)} changed before {ready} came"
            if now[valid] and now[ready]:
                accepted.append(valid)
            elif now[valid]:
                self._held[valid] = offered
        return accepted


@dataclass(frozen=True)
class Limits:
    """What a port may do beyond what AXI4 says of every port: IDs, and bursts of one ID that wait for their answer."""

    readers: Container[int] = range(1 << 16)
    writers: Container[int] = range(1 << 16)
    open_reads: int = 1 << 16
    open_writes: int = 1 << 16


class Axi4Rules:
    """A full AXI4 port with data of ``line_bytes``."""

    def __init__(self, line_bytes: int, limits: Limits | None = None) -> None:
        self.line_bytes, self.limits = line_bytes, limits or Limits()
        self.most_bytes = min(line_bytes, 128)  # AXI4 has no code for more
        self._handshakes = Handshakes(FULL)
        self._reads: dict[int, deque[int]] = {}  # beats left of each open burst, by ID
        self._bursts: deque[tuple[int, int]] = deque()  # writes whose data is to come: ID, beats
        self._early: deque[bool] = deque()  # beats that came before their address: last or not
        self._beats = 0
        self._answers: Counter[int] = Counter()  # complete writes that were not answered, by ID
        self._writes: Counter[int] = Counter()  # writes that were not answered, by ID
        self.seen: Counter[str] = Counter()

    def see(self, now: Mapping[str, int]) -> None:
        """One cycle: the values of all signals just before the clock edge."""
        accepted = self._handshakes.see(now)
        self.seen.update(accepted)
        # Answers may come in the cycle after what they answer at the earliest, so they are judged first.
        if "rvalid" in accepted:
            self._read_beat(now)
        if "bvalid" in accepted:
            assert self._answers[now["bid"]] > 0, f"an answer for ID {now['bid']}, which has no complete write"
            assert now["bresp"] != EXOKAY, "bresp is EXOKAY without an exclusive access"
            self._answers[now["bid"]] -= 1
            self._writes[now["bid"]] -= 1
        if "arvalid" in accepted:
            self._ask(now["arid"], self._burst(now, "ar"))
        if "awvalid" in accepted:
            self._bursts.append((now["awid"], self._burst(now, "aw")))
            assert now["awid"] in self.limits.writers, f"awid is {now['awid']}, which nobody has"
            self._writes[now["awid"]] += 1
            assert self._writes[now["awid"]] <= self.limits.open_writes, f"ID {now['awid']} has too many open writes"
        if "wvalid" in accepted:
            assert now["wstrb"], "a beat writes nothing"
            lowest = now["wstrb"] & -now["wstrb"]
            assert now["wstrb"] & (now["wstrb"] + lowest) == 0, f"the strobe {now['wstrb']:#x} is in pieces"
            self._early.append(bool(now["wlast"]))
        self._match()

    def _ask(self, ident: int, beats: int) -> None:
        assert ident in self.limits.readers, f"arid is {ident}, which nobody has"
        waiting = self._reads.setdefault(ident, deque())
        waiting.append(beats)
        assert len(waiting) <= self.limits.open_reads, f"ID {ident} has too many open reads"

    def _burst(self, now: Mapping[str, int], channel: str) -> int:
        """Judge a burst's address; returns its beats."""
        address, beats = now[f"{channel}addr"], now[f"{channel}len"] + 1
        size = 1 << now[f"{channel}size"]
        assert now[f"{channel}burst"] == INCR, f"{channel}burst is {now[f'{channel}burst']}, not INCR"
        assert size == self.most_bytes, f"{channel}size is {size} bytes on a bus of {self.line_bytes}"
        assert beats <= MOST_BEATS
        assert address % self.line_bytes == 0, f"{channel}addr {address:#x} is not aligned"
        last = address + beats * self.line_bytes - 1
        assert address // KIB_4 == last // KIB_4, f"{channel}: the burst at {address:#x} crosses 4 KiB"
        return beats

    def _read_beat(self, now: Mapping[str, int]) -> None:
        open_ = self._reads.get(now["rid"])
        assert open_, f"data for ID {now['rid']}, which has asked for nothing"
        assert now["rresp"] != EXOKAY, "rresp is EXOKAY without an exclusive access"
        open_[0] -= 1
        assert bool(now["rlast"]) == (open_[0] == 0), f"rlast is {now['rlast']} with {open_[0]} beats to come"
        if not open_[0]:
            open_.popleft()

    def _match(self) -> None:
        """Beats of data belong to bursts in order; the last one of each is marked."""
        while self._bursts and self._early:
            ident, beats = self._bursts[0]
            self._beats += 1
            last = self._early.popleft()
            assert last == (self._beats == beats), f"wlast is {int(last)} on beat {self._beats} of {beats}"
            if last:
                self._bursts.popleft()
                self._beats = 0
                self._answers[ident] += 1

    def at_rest(self) -> None:
        """Everything that was asked for has come."""
        assert not any(self._reads.values()), "reads are left open"
        assert not self._bursts, "a write address without data is left"
        assert not self._early, "write data without an address is left"
        assert not +self._answers, "writes are left without answer"


class LiteRules:
    """An AXI4-Lite port: one read and one write at a time, each answered once."""

    def __init__(self) -> None:
        self._handshakes = Handshakes(LITE)
        self.seen: Counter[str] = Counter()

    def see(self, now: Mapping[str, int]) -> None:
        """One cycle."""
        accepted = self._handshakes.see(now)
        seen = self.seen
        if now["rvalid"]:
            assert seen["rvalid"] < seen["arvalid"], "read data that nobody asked for"
        if now["bvalid"]:
            written = min(seen["awvalid"], seen["wvalid"])
            assert seen["bvalid"] < written, "an answer without a write"
        for channel in ("r", "b"):
            assert not (now[f"{channel}valid"] and now[f"{channel}resp"] == EXOKAY), f"{channel}resp is EXOKAY"
        seen.update(accepted)
        assert seen["arvalid"] - seen["rvalid"] <= 1, "two reads are open"
        assert max(seen["awvalid"], seen["wvalid"]) - seen["bvalid"] <= 1, "two writes are open"


async def watch(ctx: Any, bus: Any, rules: Axi4Rules | LiteRules) -> None:
    """A background process: ``rules`` judge ``bus`` in every cycle."""
    names = [name for channel in (FULL if isinstance(rules, Axi4Rules) else LITE) for name in channel]
    async for _, _, *values in ctx.tick().sample(*(getattr(bus, name) for name in names)):
        rules.see(dict(zip(names, values, strict=True)))


class StreamRules:
    """A stream's rules: what is offered stays and does not change until it is taken. ``taken`` collects payloads."""

    def __init__(self) -> None:
        self._handshakes = Handshakes([("valid", "ready", "payload")])
        self.taken: list[int] = []

    async def watch(self, ctx: Any, stream: Any) -> None:
        """A background process on an Amaranth stream."""
        payload = Value.cast(stream.payload)
        async for _, _, valid, ready, value in ctx.tick().sample(stream.valid, stream.ready, payload):
            if self._handshakes.see({"valid": valid, "ready": ready, "payload": value}):
                self.taken.append(value)
