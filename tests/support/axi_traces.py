"""Traces of AXI buses for those who judge them: ones that keep the rules, ones with a planted mistake, random ones.

It must not know any judge. A cycle is a dict of signals by name; those that are missing are 0.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from corepool.config import preset
from support.axi import FULL, LITE, Limits

LINE = preset("tiny").ddr.line_bytes
SIZE = LINE.bit_length() - 1
OPEN_READS, OPEN_WRITES = 5, 4
LIMITS = Limits(readers=range(1, 4), writers=range(4), open_reads=OPEN_READS, open_writes=OPEN_WRITES)
QUIET = {name: 0 for channel in FULL for name in channel}
AR = {"arvalid": 1, "arready": 1, "arid": 1, "araddr": 0x1000, "arlen": 1, "arsize": SIZE, "arburst": 1}
AW = {"awvalid": 1, "awready": 1, "awid": 2, "awaddr": 0x2000, "awlen": 1, "awsize": SIZE, "awburst": 1}
W = {"wvalid": 1, "wready": 1, "wdata": 5, "wstrb": 3, "wlast": 0}
R = {"rvalid": 1, "rready": 1, "rid": 1, "rdata": 9, "rlast": 0}
B = {"bvalid": 1, "bready": 1, "bid": 2}
Cycle = dict[str, int]

GOOD: list[Cycle] = [
    AR | {"arready": 0},
    AR | AW,
    W | R,
    R | {"rready": 0, "rlast": 1},
    W | R | {"wlast": 1, "rlast": 1},
    B,
]
PLANTED: dict[str, tuple[list[Cycle], str]] = {
    "address withdrawn": ([AR | {"arready": 0}, {}], "arvalid fell"),
    "address changed": ([AR | {"arready": 0}, AR | {"araddr": 0x1040}], "araddr changed"),
    "ID changed": ([AW | {"awready": 0}, AW | {"awid": 3}], "awid changed"),
    "data changed": ([AW, W | {"wready": 0}, W | {"wdata": 6}], "wdata changed"),
    "strobe changed": ([AW, W | {"wready": 0}, W | {"wstrb": 1}], "wstrb changed"),
    "read data withdrawn": ([AR, R | {"rready": 0}, {}], "rvalid fell"),
    "answer changed": ([AW, W, W | {"wlast": 1}, B | {"bready": 0}, B | {"bid": 1}], "bid changed"),
    "burst over 4 KiB": ([AR | {"araddr": 0x2000 - LINE}], "crosses 4 KiB"),
    "long burst over 4 KiB": ([AW | {"awaddr": 0x1800, "awlen": 255}], "crosses 4 KiB"),
    "not aligned": ([AR | {"araddr": 0x1008}], "not aligned"),
    "narrow": ([AR | {"arsize": SIZE - 1}], "arsize"),
    "wrapping": ([AW | {"awburst": 2}], "awburst"),
    "last too soon": ([AW, W | {"wlast": 1}], "wlast is 1 on beat 1 of 2"),
    "last missing": ([AW, W, W], "wlast is 0 on beat 2 of 2"),
    "last missing before the address": ([W, W, AW], "wlast is 0 on beat 2 of 2"),
    "nothing written": ([AW, W | {"wstrb": 0}], "writes nothing"),
    "data nobody asked for": ([AR, R | {"rid": 2}], "asked for nothing"),
    "data in the cycle of its address": ([AR | R], "asked for nothing"),
    "data twice": ([AR, R, R | {"rlast": 1}, R], "asked for nothing"),
    "read ends too soon": ([AR, R | {"rlast": 1}], "rlast is 1"),
    "read does not end": ([AR, R, R], "rlast is 0"),
    "answer before the data": ([AW, W, B], "no complete write"),
    "answer of another ID": ([AW, W, W | {"wlast": 1}, B | {"bid": 1}], "no complete write"),
    "answer twice": ([AW, W, W | {"wlast": 1}, B, B], "no complete write"),
    "ID of another bank": ([AR | {"arid": 7}], "arid is 7"),
    "ID of nobody": ([AW | {"awid": 9}], "awid is 9"),
    "strobe in pieces": ([AW, W | {"wstrb": 0b1011}], "in pieces"),
    "too many reads": ([AR] * (OPEN_READS + 1), "ID 1 has too many open reads"),
    "too many writes": ([AW] * (OPEN_WRITES + 1), "ID 2 has too many open writes"),
    "data for an exclusive read": ([AR, R | {"rresp": 1}], "rresp is EXOKAY"),
    "answer to an exclusive write": ([AW, W, W | {"wlast": 1}, B | {"bresp": 1}], "bresp is EXOKAY"),
}

LITE_QUIET = {name: 0 for channel in LITE for name in channel}
LITE_PLANTED = {
    "read data unasked": [{"rvalid": 1}],
    "answer before data": [{"awvalid": 1, "awready": 1}, {"bvalid": 1}],
    "answer changed": [
        {"awvalid": 1, "awready": 1, "wvalid": 1, "wready": 1},
        {"bvalid": 1, "bresp": 0},
        {"bvalid": 1, "bresp": 2},
    ],
    "data withdrawn": [{"wvalid": 1}, {}],
    "exclusive answer": [{"arvalid": 1, "arready": 1}, {"rvalid": 1, "rresp": 1}],
    "two reads": [{"arvalid": 1, "arready": 1}, {"arvalid": 1, "arready": 1}],
    "two write addresses": [{"awvalid": 1, "awready": 1}, {"awvalid": 1, "awready": 1}],
    "data twice": [{"wvalid": 1, "wready": 1}, {"wvalid": 1, "wready": 1}],
}


class Traffic:
    """Bursts of 1 to 4 beats that come and are answered at random, by the rules.

    Write data may come before its address; reads are answered in any order of IDs, beats of different IDs mixed.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.held: dict[str, Cycle] = {}  # what is offered and not taken, by channel
        self.reads: dict[int, deque[int]] = {}  # beats to come, by ID
        self.writes: list[int] = [0] * OPEN_WRITES  # not answered, by ID
        self.addressed: deque[tuple[int, int]] = deque()  # writes whose data is to be taken: ID, beats
        self.beats: deque[bool] = deque()  # of writes that are planned, whether the last
        self.planned: deque[tuple[int, int]] = deque()  # whose address is to be offered
        self.data = 0  # beats that were taken and belong to no complete write yet
        self.complete: deque[int] = deque()  # writes that can be answered

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _pick(self, values: list[int]) -> int:
        return int(self.rng.choice(values))

    def _address(self, channel: str, ident: int, beats: int) -> Cycle:
        place = int(self.rng.integers(0, 64)) * 4096 + int(self.rng.integers(0, 4096 // LINE - beats + 1)) * LINE
        values = {"id": ident, "addr": place, "len": beats - 1, "size": SIZE, "burst": 1}
        return {f"{channel}{name}": value for name, value in values.items()}

    def _offers(self) -> None:
        """What is newly offered in this cycle."""
        rng = self.rng
        if "ar" not in self.held and self._chance(0.3):
            ident, beats = self._pick([1, 2, 3]), int(rng.integers(1, 5))
            if len(self.reads.get(ident, ())) < OPEN_READS:
                self.held["ar"] = self._address("ar", ident, beats)
        ident = int(rng.integers(OPEN_WRITES))
        if self._chance(0.2) and self.writes[ident] < OPEN_WRITES and len(self.planned) < 3:
            beats = int(rng.integers(1, 5))
            self.writes[ident] += 1
            self.planned.append((ident, beats))
            self.beats += [place == beats - 1 for place in range(beats)]
        if "aw" not in self.held and self.planned and self._chance(0.5):
            self.held["aw"] = self._address("aw", *self.planned[0])
        if "w" not in self.held and self.beats and self._chance(0.5):
            low = int(rng.integers(LINE))
            strobe = (1 << int(rng.integers(low + 1, LINE + 1))) - (1 << low)
            self.held["w"] = {"wdata": int(rng.integers(1 << 40)), "wstrb": strobe, "wlast": int(self.beats[0])}
        waiting = [ident for ident, left in self.reads.items() if left]
        if "r" not in self.held and waiting and self._chance(0.7):
            ident = self._pick(waiting)
            last = int(self.reads[ident][0] == 1)
            self.held["r"] = {"rid": ident, "rdata": int(rng.integers(1 << 40)), "rresp": 2 * last, "rlast": last}
        if "b" not in self.held and self.complete and self._chance(0.5):
            self.held["b"] = {"bid": self.complete.popleft(), "bresp": 0}

    def cycle(self) -> Cycle:
        """The next cycle."""
        self._offers()
        now: Cycle = {}
        taken = []
        for channel in ("ar", "aw", "w", "r", "b"):
            ready = self._chance(0.6)
            now[f"{channel}ready"] = int(ready)
            if channel in self.held:
                now |= {f"{channel}valid": 1, **self.held[channel]}
                if ready:
                    taken.append(channel)
        for channel in taken:
            self._take(channel, self.held.pop(channel))
        while self.addressed and self.data >= self.addressed[0][1]:
            ident, beats = self.addressed.popleft()
            self.data -= beats
            self.complete.append(ident)
        return now

    def _take(self, channel: str, what: Cycle) -> None:
        if channel == "ar":
            self.reads.setdefault(what["arid"], deque()).append(what["arlen"] + 1)
        elif channel == "aw":
            self.addressed.append(self.planned.popleft())
        elif channel == "w":
            self.beats.popleft()
            self.data += 1
        elif channel == "r":
            left = self.reads[what["rid"]]
            left[0] -= 1
            if not left[0]:
                left.popleft()
        else:
            self.writes[what["bid"]] -= 1


def spoiled(rng: np.random.Generator, trace: list[Cycle], signals: Cycle) -> list[Cycle]:
    """The trace with one bit of one of ``signals`` changed in one cycle, which may or may not break a rule."""
    place = int(rng.integers(len(trace)))
    name = str(rng.choice(sorted(signals)))
    width = {
        "addr": 18,
        "len": 3,
        "size": 3,
        "burst": 2,
        "id": 3,
        "resp": 2,
        "data": 8,
        "strb": LINE if "awid" in signals else 4,
    }
    bits = next((bits for end, bits in width.items() if name.endswith(end)), 1)
    changed = trace[place].get(name, 0) ^ 1 << int(rng.integers(bits))
    return [*trace[:place], trace[place] | {name: changed}, *trace[place + 1 :]]


class LiteTraffic:
    """Accesses to registers one by one, by the rules."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.held: dict[str, Cycle] = {}
        self.open = {"ar": 0, "aw": 0, "w": 0}

    def cycle(self) -> Cycle:
        """The next cycle."""
        rng, now = self.rng, Cycle()
        for channel in ("ar", "aw", "w", "r", "b"):
            answers = {"r": self.open["ar"], "b": min(self.open["aw"], self.open["w"])}
            may = answers[channel] if channel in answers else not self.open[channel]
            if channel not in self.held and may and rng.random() < 0.4:
                names = next(each for each in LITE if each[0] == f"{channel}valid")[2:]
                self.held[channel] = {name: 2 * int(rng.integers(2)) for name in names}
        for channel in ("r", "b", "ar", "aw", "w"):
            ready = bool(rng.random() < 0.6)
            now[f"{channel}ready"] = int(ready)
            if channel in self.held:
                now |= {f"{channel}valid": 1, **self.held[channel]}
        for channel in [name for name in self.held if now[f"{name}ready"]]:
            del self.held[channel]
            for asked in {"r": ("ar",), "b": ("aw", "w")}.get(channel, (channel,)):
                self.open[asked] = int(channel == asked)
        return now
