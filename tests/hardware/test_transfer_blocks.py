"""Blocks that move data, one by one against plain Python: fetcher, load and save unit, write buffer, the way back.

It must not know the pool around them; requests are granted, lines come and buffers fill at random.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corepool.config import preset
from corepool.hardware.fetch import Fetcher
from corepool.hardware.interfaces import LINE_LEAD
from corepool.hardware.load import LoadUnit
from corepool.hardware.returns import Returns, most_open
from corepool.hardware.save import SaveUnit
from corepool.hardware.writes import WriteBuffer
from corepool.isa.codec import decode, encode
from corepool.isa.table import Opcode
from support.axi import StreamRules
from support.blocks import simulate
from support.cycle_model import bursts

TINY = preset("tiny")
WORD, LINE = TINY.word_bytes, TINY.ddr.line_bytes


@pytest.mark.parametrize("seed", range(4))
def test_the_fetcher_offers_the_stream_in_order(seed: int) -> None:
    """Any offset and length; bursts are granted and complete late, instructions are taken now and then."""
    rng = np.random.default_rng(seed)
    config = TINY if seed % 2 else replace(TINY, fetch_depth=8, fetch_burst_bytes=64)
    block, rules = Fetcher(config), StreamRules()
    offset, count = 32 * int(rng.integers(0, 40)), int(rng.integers(1, 60))
    memory = [int.from_bytes(rng.bytes(32), "little") for _ in range(offset // 32 + count)]

    def line(number: int) -> int:
        words = memory[number * LINE // 32 : (number + 1) * LINE // 32]
        return sum(word << 256 * place for place, word in enumerate(words))

    async def bench(ctx: Any) -> None:
        ctx.set(block.offset, offset)
        ctx.set(block.count, count)
        ctx.set(block.last, offset + 32 * count - 1)
        ctx.set(block.start, 1)
        await ctx.tick()
        ctx.set(block.start, 0)
        ctx.set(block.enable, 1)
        lines: deque[tuple[int, bool]] = deque()
        asked = 0
        for _ in range(3000):
            take = bool(ctx.get(block.request.pending)) and rng.random() < 0.3
            ctx.set(block.request.take, int(take))
            if take:
                burst = ctx.get(block.request.payload)
                assert burst.line == (offset + asked) // LINE
                asked += burst.bytes
                lines += [(burst.line + place, place == burst.more) for place in range(burst.more + 1)]
                assert (offset + asked) % config.fetch_burst_bytes == 0 or asked == 32 * count
            now = lines.popleft() if lines and rng.random() < 0.5 else None
            ctx.set(block.line_valid, int(now is not None))
            ctx.set(block.line, 0 if now is None else line(now[0]))
            ctx.set(block.instruction.ready, int(rng.random() < 0.5))
            await ctx.tick()
            ctx.set(block.line_valid, 0)
            ctx.set(block.request.take, 0)
            ctx.set(block.instruction.ready, 0)
            if now is not None and now[1]:
                await ctx.tick()  # a line is in the buffer before its burst counts as complete
                ctx.set(block.complete, 1)
                await ctx.tick()
                ctx.set(block.complete, 0)
            assert not ctx.get(block.fault)
            if ctx.get(block.ended):
                break
        await ctx.tick()  # the observer looks at the end of each cycle
        assert asked == 32 * count
        assert rules.taken == memory[offset // 32 :]

    async def watch(ctx: Any) -> None:
        await rules.watch(ctx, block.instruction)

    simulate(block, bench, watch)


def transfer(rng: np.random.Generator, opcode: Opcode) -> bytes:
    rows, blocks, pixels = (int(v) for v in rng.integers(1, (4, 3, 90)))
    values = {"rows": rows, "blocks": blocks, "pixels": pixels, "row_stride": pixels + int(rng.integers(0, 2))}
    values["block_stride"] = int(rng.choice([rows * pixels, rows * pixels + 5]))
    values["address"] = int(rng.integers(0, 1 << 14)) * WORD
    if opcode is Opcode.LOAD:
        return encode(opcode, target=int(rng.integers(0, 5)), raise_next=int(rng.integers(2)), **values)
    skip, local = int(rng.choice([0, 3])), int(rng.integers(0, TINY.result_words))
    return encode(opcode, banks=int(rng.integers(1, 4)), raise_prev=int(rng.integers(2)), block_skip=skip, local=local,
                  **values)  # fmt: skip


def test_the_load_unit_asks_for_every_burst_once_and_never_too_many(rng: np.random.Generator) -> None:
    block = LoadUnit(TINY)
    words = [transfer(rng, Opcode.LOAD) for _ in range(25)]
    wanted = [
        (first, behind, number) for number, word in enumerate(words) for first, behind in bursts(TINY, decode(word))
    ]
    ends = [sum(1 for _, _, n in wanted if n <= number) for number in range(len(words))]

    async def bench(ctx: Any) -> None:
        seen: list[tuple[int, int, int]] = []
        done: list[tuple[int, bool, int]] = []  # instruction, token, bursts that were complete
        started, complete, since = 0, 0, -1
        for now in range(20000):
            ready = bool(ctx.get(block.free)) and started < len(words) and rng.random() < 0.5
            ctx.set(block.start, int(ready))
            if ready:
                ctx.set(block.instruction, int.from_bytes(words[started], "little"))
                ctx.set(block.index, started)
                started, since = started + 1, now
            answer = complete < len(seen) and rng.random() < 0.3
            ctx.set(block.complete, int(answer))
            complete += answer
            if ctx.get(block.request):
                burst = ctx.get(block.burst)
                assert now >= since + TINY.setup_cycles
                seen.append((burst.address, burst.address + burst.length, burst.index))
                assert len(seen) - complete <= TINY.load_outstanding
            if ctx.get(block.done):
                done.append((ctx.get(block.done_index), bool(ctx.get(block.done_raise)), complete))
            idle = bool(ctx.get(block.free)) and len(seen) == complete
            assert ctx.get(block.idle) == idle
            if len(done) == len(words):
                break
            await ctx.tick()
        assert seen == wanted
        tokens = [bool(decode(word).values["raise_next"]) for word in words]
        assert done == [(number, tokens[number], ends[number]) for number in range(len(words))]

    simulate(block, bench)


def local_words(word: bytes) -> list[int]:
    """Addresses in the result memory, in order: some words are left out behind each channel block."""
    v = decode(word).values
    size = v["rows"] * v["pixels"]
    return [
        (v["local"] + b * (size + v["block_skip"]) + number) % TINY.result_words
        for b in range(v["blocks"])
        for number in range(size)
    ]


def test_the_save_unit_reads_every_word_and_waits_for_room(rng: np.random.Generator) -> None:
    block = SaveUnit(TINY)
    words = [transfer(rng, Opcode.SAVE) for _ in range(20)]
    wanted = [
        (first, behind, number) for number, word in enumerate(words) for first, behind in bursts(TINY, decode(word))
    ]

    async def bench(ctx: Any) -> None:
        begun: list[tuple[int, int, int]] = []
        addresses: list[int] = []
        done: list[tuple[int, bool]] = []
        lasts, valid_words, started, since, left = 0, 0, 0, -1, 0
        previous = False
        for now in range(30000):
            ready = bool(ctx.get(block.free)) and started < len(words) and rng.random() < 0.5
            ctx.set(block.start, int(ready))
            room = int(rng.integers(0, 4))
            ctx.set(block.room, room)
            if ctx.get(block.begin):
                burst, mask = ctx.get(block.burst), ctx.get(block.banks)
                assert now >= since + TINY.setup_cycles
                assert mask == decode(words[burst.index]).values["banks"]
                assert room & mask == mask
                begun.append((burst.address, burst.address + burst.length, burst.index))
                assert left == 0
                left = burst.length // WORD
            reading = left > 0
            if reading:
                addresses.append(ctx.get(block.address))
                left -= 1
            if previous:
                assert ctx.get(block.word_valid)
                valid_words += 1
                lasts += ctx.get(block.word_last)
            else:
                assert not ctx.get(block.word_valid)
            previous = reading
            if ctx.get(block.done):
                done.append((ctx.get(block.done_index), bool(ctx.get(block.done_raise))))
            if ready:
                ctx.set(block.instruction, int.from_bytes(words[started], "little"))
                ctx.set(block.index, started)
                started, since = started + 1, now
            if len(done) == len(words):
                break
            await ctx.tick()
        assert begun == wanted
        assert lasts == len(wanted)
        assert addresses == [place for word in words for place in local_words(word)]
        tokens = [bool(decode(word).values["raise_prev"]) for word in words]
        assert done == list(enumerate(tokens))

    simulate(block, bench)


@pytest.mark.parametrize("seed", range(3))
def test_lines_come_back_as_what_was_granted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = Returns(TINY)
    depth, spacing = most_open(TINY), TINY.cores_per_bank

    async def bench(ctx: Any) -> None:
        open_: deque[list[int]] = deque()  # load or fetch, lines left
        expected: dict[int, set[str]] = {}
        free_at = completes = 0
        for now in range(600):
            grant = now < 350 and len(open_) < depth and rng.random() < 0.3
            ctx.set(block.grant, int(grant))
            load, more = int(rng.integers(2)), int(rng.integers(0, 8))
            ctx.set(block.load, load)
            ctx.set(block.more, more)
            assert ctx.get(block.ready) == (now >= free_at)
            seen = {
                n for n in ("fetch_line", "load_line", "fetch_complete", "load_complete") if ctx.get(getattr(block, n))
            }
            assert seen == expected.pop(now, set()), now
            completes += len(seen & {"fetch_complete", "load_complete"})
            if open_ or expected:
                assert ctx.get(block.busy)
            take = bool(open_) and now >= free_at and rng.random() < 0.7
            ctx.set(block.take, int(take))
            if take:
                kind = "load" if open_[0][0] else "fetch"
                expected.setdefault(now + 1, set()).add(f"{kind}_line")
                open_[0][1] -= 1
                free_at = now + spacing
                if open_[0][1] == 0:
                    open_.popleft()
                    lead = LINE_LEAD if kind == "load" else LINE_LEAD - 1
                    expected.setdefault(now + 1 + lead, set()).add(f"{kind}_complete")
            if grant:
                open_.append([load, more + 1])
            await ctx.tick()
        assert completes > 30
        assert not ctx.get(block.busy)

    simulate(block, bench)


class BufferModel:
    """What a write buffer must hand out: bytes by address in the window."""

    def __init__(self) -> None:
        self.bursts: deque[tuple[int, bytes]] = deque()  # complete, not served yet

    def lines(self) -> list[tuple[int, int]]:
        """Data and strobe of each line of the oldest burst."""
        address, content = self.bursts[0]
        made = []
        for number in range(address // LINE, (address + len(content) - 1) // LINE + 1):
            data = strobe = 0
            for place in range(LINE):
                at = number * LINE + place - address
                if 0 <= at < len(content):
                    data |= content[at] << 8 * place
                    strobe |= 1 << place
            made.append((data, strobe))
        return made


@pytest.mark.parametrize("seed", range(4))
def test_the_write_buffer_hands_out_whole_lines_with_the_bytes_of_the_burst(seed: int) -> None:
    """Bursts of any place and length, with pauses; some are dropped; lines are served and acknowledged late."""
    rng = np.random.default_rng(seed)
    config = replace(TINY, save_buffers=1 + seed % 3)
    block, model = WriteBuffer(config), BufferModel()

    async def bench(ctx: Any) -> None:
        words, served, open_, dropped = block.words, 0, 0, 0
        sending: tuple[int, bytes] | None = None
        sent = 0
        lines: list[tuple[int, int]] = []
        check: tuple[int, int] | None = None
        waiting = 0  # bursts that are asked for, not granted
        held = 0
        for now in range(2500):
            if check is not None:
                data, strobe = check
                mask = sum(0xFF << 8 * place for place in range(LINE) if strobe >> place & 1)
                assert ctx.get(block.strobe) == strobe
                assert ctx.get(block.data) & mask == data
                check = None
            for signal in (words.begin, words.valid, words.last, words.drop, block.serve, block.final, block.issue):
                ctx.set(signal, 0)
            ctx.set(block.request.take, 0)
            ctx.set(block.ack, 0)
            assert ctx.get(block.pending) == (held + open_ > 0)
            assert ctx.get(block.request.pending) == (waiting > 0)
            # The lane: grants a burst, then serves its lines.
            if not lines and waiting and rng.random() < 0.4:
                burst = ctx.get(block.request.payload)
                address, content = model.bursts[0]
                assert (burst.line, burst.bytes) == (address // LINE, len(content))
                lines = model.lines()
                assert burst.more == len(lines) - 1
                ctx.set(block.request.take, 1)
                waiting -= 1
            elif lines and rng.random() < 0.5:
                check = lines.pop(0)
                ctx.set(block.serve, 1)
                ctx.set(block.issue, 1)
                open_ += 1
                served += 1
                if not lines:
                    ctx.set(block.final, 1)
                    model.bursts.popleft()
                    held -= 1
            if open_ > (check is not None) and rng.random() < 0.3:
                ctx.set(block.ack, 1)
                open_ -= 1
            # The core: begins a burst when there is room, sends its words without a pause, or forgets it.
            if sending is None and now < 2300 and rng.random() < 0.3:
                assert ctx.get(block.room) == (held < config.save_buffers)
                if held < config.save_buffers:
                    length = WORD * int(rng.integers(1, config.burst_bytes // WORD + 1))
                    room = config.burst_bytes - length
                    address = config.burst_bytes * int(rng.integers(0, 50)) + WORD * int(
                        rng.integers(0, room // WORD + 1)
                    )
                    sending, sent = (address, rng.bytes(length)), 0
                    ctx.set(words.begin, 1)
                    ctx.set(words.burst.address, address)
                    ctx.set(words.burst.length, length)
                    held += 1
            elif sending is not None and rng.random() < 0.01:
                ctx.set(words.drop, 1)
                sending = None
                held -= 1
                dropped += 1
            elif sending is not None:
                address, content = sending
                ctx.set(words.valid, 1)
                ctx.set(words.data, int.from_bytes(content[sent : sent + WORD], "little"))
                sent += WORD
                if sent == len(content):
                    ctx.set(words.last, 1)
                    model.bursts.append(sending)
                    sending = None
                    waiting += 1
            await ctx.tick()
            if now > 2400 and not held and not open_:
                break
        assert served > 100
        assert dropped > 0
        assert not ctx.get(block.pending)

    simulate(block, bench)
