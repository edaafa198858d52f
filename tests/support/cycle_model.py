"""A second witness for time: the machine stepped cycle by cycle, written from the manual's section on time alone.

It must not know the simulator's event loop; it is slow, and shares nothing with it but the instruction table.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from corepool.config import HardwareConfig
from corepool.errors import InstructionError
from corepool.isa.codec import Decoded, decode
from corepool.isa.table import INSTRUCTION_BYTES, INSTRUCTIONS, Opcode, PoolMode, Shape, Target, Unit

FAULTS = ("UNDEFINED", "WINDOW", "FOREIGN_SYNC", "STREAM_END", "TOKENS", "WATCHDOG")


@dataclass
class Burst:
    """A request at a slot: which bytes, and who waits for it."""

    first: int
    behind: int
    owner: object
    requested: int = -1
    lines_left: int = 0
    complete: int | None = None
    tag: int = -1


@dataclass
class Op:
    """An instruction on its way: what it is and when it left the dispatcher, started and ended."""

    index: int
    what: Decoded | None  # None: undefined
    left: int = -1
    started: int = -1
    ended: int = -1


@dataclass
class Slot:
    """A core's share of its bank."""

    bank: int
    local: int
    names: list[object] = field(default_factory=list)  # requesters in their order
    queues: list[deque[Burst]] = field(default_factory=list)
    turn: int = 0
    busy: Burst | None = None


def defined(config: HardwareConfig, op: Decoded) -> bool:
    """What goes beyond the field table."""
    v, code = op.values, op.opcode
    if code in (Opcode.LOAD, Opcode.SAVE) and v["address"] % config.word_bytes:
        return False
    if code is Opcode.LOAD and v["target"] not in list(Target):
        return False
    if code is Opcode.CONV and v["shape"] not in list(Shape):
        return False
    if code is Opcode.DWCONV and v["kernel_w"] > config.channels:
        return False
    if v.get("lut") and v["lut_slot"] >= config.lut_slots:
        return False
    if "first" in v and not (v["first"] and v["last"]):
        rows, cols = shape_of(config, v.get("shape", 0))
        if v["out_blocks"] > 1 or v["rows"] > rows or v["cols"] > cols:
            return False
        if code is Opcode.POOL and v["mode"] == PoolMode.MAX:
            return False
    return True


def shape_of(config: HardwareConfig, shape: int) -> tuple[int, int]:
    p = config.pixels
    square = {1: (1, 1), 4: (2, 2), 16: (4, 4)}.get(p, (2, p // 2))
    return ((1, p), square, (p, 1))[shape]


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def duration(config: HardwareConfig, op: Decoded) -> int:
    v, p, latency = op.values, config.pixels, config.compute_latency
    if op.opcode in (Opcode.ADD, Opcode.MUL):
        return v["out_blocks"] * v["rows"] * v["cols"] + p + latency
    if op.opcode is Opcode.CONV:
        rows, cols = shape_of(config, v["shape"])
        n = v["out_blocks"] * ceil_div(v["rows"], rows) * ceil_div(v["cols"], cols)
        factor = 1 if p == 1 else p - 1
        places = [(x * v["stride_x"] + factor * y * v["stride_y"]) % (2 * p) for y in range(rows) for x in range(cols)]
        k = v["kernel_h"] * v["kernel_w"] * v["in_blocks"] * max(places.count(place) for place in places)
    else:
        n = v["out_blocks"] * v["rows"] * ceil_div(v["cols"], p)
        reach = (min(p, v["cols"]) - 1) * v["stride_x"] + (v["kernel_w"] - 1) * v["dilation_x"] + 1
        k = v["kernel_h"] * ceil_div(reach, 2 * p)
    return n * max(k, p) + p + latency if v["last"] else k + latency


def bursts(config: HardwareConfig, op: Decoded) -> list[tuple[int, int]]:
    """First byte and byte behind the last of every burst, in order."""
    v, word = op.values, config.word_bytes
    runs: list[list[int]] = []
    rows_touch = v["rows"] == 1 or v["row_stride"] == v["pixels"]
    blocks_touch = rows_touch and (v["blocks"] == 1 or v["block_stride"] == v["rows"] * v["pixels"])
    if op.opcode is Opcode.LOAD and v["target"] == Target.FEATURE and v["rows"] * v["pixels"] < 4 * config.pixels:
        blocks_touch = blocks_touch and v["blocks"] == 1
    for b in range(v["blocks"]):
        for r in range(v["rows"]):
            start = v["address"] + (b * v["block_stride"] + r * v["row_stride"]) * word
            stop = start + v["pixels"] * word
            if runs and ((r and rows_touch) or (not r and blocks_touch)):
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
    pieces = []
    for start, stop in runs:
        while start < stop:
            cut = min(stop, start - start % config.burst_bytes + config.burst_bytes)
            pieces.append((start, cut))
            start = cut
    return pieces


class Core:
    """Fetcher, dispatcher and the three units of one core."""

    def __init__(self, lease: LeaseModel, number: int, stream: bytes, offset: int) -> None:
        self.lease, self.number, self.config = lease, number, lease.config
        self.ops = []
        for index in range(len(stream) // INSTRUCTION_BYTES):
            try:
                what = decode(stream[index * INSTRUCTION_BYTES : (index + 1) * INSTRUCTION_BYTES])
                self.ops.append(Op(index, what if defined(self.config, what) else None))
            except InstructionError:
                self.ops.append(Op(index, None))
        self.offset, self.length = offset, len(stream)
        self.fetch_at = offset
        self.fetched: list[Burst] = []
        self.next = 0
        self.left_before = 0  # instructions that left in earlier cycles
        self.last_left = lease.start - 1
        self.held: str | None = None
        self.queues: dict[Unit, deque[Op]] = {unit: deque() for unit in (Unit.LOAD, Unit.COMPUTE, Unit.SAVE)}
        self.taken_now: dict[Unit, int] = {}
        self.tokens = {"LC": 0, "CL": 0, "CS": 0, "SC": 0}
        self.load: Op | None = None
        self.load_free = 0
        self.load_todo: list[tuple[int, int]] = []
        self.load_open: list[tuple[Op, list[Burst], bool]] = []
        self.compute: Op | None = None
        self.save: Op | None = None
        self.save_todo: list[tuple[int, int]] = []
        self.save_ready = 0
        self.save_request: tuple[int, Burst] | None = None
        self.save_pending: dict[int, list[Burst]] = {}
        self.unacknowledged: list[Burst] = []
        self.faults: list[tuple[str, int, int]] = []

    def bad(self, kind: str, index: int, address: int = 0) -> None:
        self.faults.append((kind, index, address))

    def give(self, name: str, op: Op) -> None:
        self.tokens[name] += 1
        if self.tokens[name] > 255:
            self.bad("TOKENS", op.index)

    def step(self, t: int) -> None:
        self.end_loads(t)
        self.end_compute(t)
        self.move_save(t)
        self.taken_now = dict.fromkeys(self.queues, 0)
        self.start_units(t)
        self.request_load(t)
        left_before = self.left_before
        self.dispatch(t)
        self.fetch(t, left_before)
        self.arrive(t)

    def end_loads(self, t: int) -> None:
        while self.load_open:
            op, parts, whole = self.load_open[0]
            if not whole or any(part.complete is None or part.complete > t for part in parts):
                return
            self.load_open.pop(0)
            op.ended = t
            self.lease.progress = t
            if op.what["raise_next"]:
                self.give("LC", op)

    def end_compute(self, t: int) -> None:
        op = self.compute
        if op is not None and op.started + duration(self.config, op.what) == t:
            op.ended, self.compute = t, None
            self.lease.progress = t
            if op.what["raise_prev"]:
                self.give("CL", op)
            if op.what["raise_next"]:
                self.give("CS", op)

    def move_save(self, t: int) -> None:
        op = self.save
        if op is None:
            return
        if self.save_request is not None and self.save_request[0] == t:
            burst = self.save_request[1]
            self.save_request, self.save_ready = None, t
            for bank in self.save_pending:
                if op.what["banks"] >> bank & 1:
                    copy = self.save_pending[bank][-1]
                    copy.requested = t
                    slot = self.lease.lane(self, bank)
                    slot.queues[slot.names.index(self)].append(copy)
                    self.unacknowledged.append(copy)
            assert burst is not None
            if not self.save_todo:
                op.ended, self.save = t, None
                self.lease.progress = t
                if op.what["raise_prev"]:
                    self.give("SC", op)
                return
        if self.save_request is None and t >= self.save_ready:
            self.begin_burst(t, op)

    def begin_burst(self, t: int, op: Op) -> None:
        banks = [bank for bank in range(8) if op.what["banks"] >> bank & 1]
        for bank in banks:
            waiting = [b for b in self.save_pending.get(bank, []) if b.complete is None or b.complete > t]
            self.save_pending[bank] = waiting
            if len(waiting) >= self.config.save_buffers:
                return
        first, behind = self.save_todo[0]
        if behind > self.lease.window or any(bank not in self.lease.banks for bank in banks):
            self.bad("WINDOW", op.index, first)
            return
        self.save_todo.pop(0)
        for bank in banks:
            self.save_pending[bank].append(Burst(first, behind, self))
        words = (behind - first) // self.config.word_bytes
        self.save_request = (t + words, Burst(first, behind, self))

    def start_units(self, t: int) -> None:
        queue = self.queues[Unit.LOAD]
        if queue and self.load is None and t >= self.load_free and queue[0].left < t:
            op = queue[0]
            if self.take({"CL": op.what["wait_next"]}):
                queue.popleft()
                self.taken_now[Unit.LOAD] = 1
                op.started, self.load, self.load_todo = t, op, bursts(self.config, op.what)
                self.load_open.append((op, [], False))
        queue = self.queues[Unit.COMPUTE]
        if queue and self.compute is None and queue[0].left < t:
            op = queue[0]
            if self.take({"LC": op.what["wait_prev"], "SC": op.what["wait_next"]}):
                queue.popleft()
                self.taken_now[Unit.COMPUTE] = 1
                op.started, self.compute = t, op
        queue = self.queues[Unit.SAVE]
        if queue and self.save is None and queue[0].left < t:
            op = queue[0]
            if self.take({"CS": op.what["wait_prev"]}):
                queue.popleft()
                self.taken_now[Unit.SAVE] = 1
                op.started, self.save, self.save_todo = t, op, bursts(self.config, op.what)
                self.save_ready = t + self.config.setup_cycles

    def take(self, wanted: dict[str, int]) -> bool:
        if any(count > self.tokens[name] for name, count in wanted.items()):
            return False
        for name, count in wanted.items():
            self.tokens[name] -= count
        return True

    def request_load(self, t: int) -> None:
        op = self.load
        if op is None or t < op.started + self.config.setup_cycles:
            return
        incomplete = sum(part.complete is None or part.complete > t for _, parts, _ in self.load_open for part in parts)
        if incomplete >= self.config.load_outstanding:
            return
        first, behind = self.load_todo[0]
        if behind > self.lease.window:
            self.bad("WINDOW", op.index, first)
            return
        self.load_todo.pop(0)
        burst = Burst(first, behind, "load", t)
        self.lease.slots[self.number].queues[1].append(burst)
        entry = self.load_open[-1]
        entry[1].append(burst)
        if not self.load_todo:
            self.load_open[-1] = (op, entry[1], True)
            self.load, self.load_free = None, t + 1

    def dispatch(self, t: int) -> None:
        if self.held is not None or t <= self.last_left:
            return
        if self.next == len(self.ops):
            self.bad("STREAM_END", self.next)
            return
        place = self.offset + self.next * INSTRUCTION_BYTES
        if not any(b.first <= place < b.behind and b.complete is not None and b.complete <= t for b in self.fetched):
            return
        op = self.ops[self.next]
        if op.what is None:
            self.bad("UNDEFINED", op.index)
            return
        unit = INSTRUCTIONS[op.what.opcode].unit
        if unit is Unit.SYSTEM:
            if op.what.opcode is Opcode.SYNC and op.what["cores"] != self.lease.mask:
                self.bad("FOREIGN_SYNC", op.index)
                return
            self.held = "reached"
            op.started = t
            return
        if len(self.queues[unit]) + self.taken_now[unit] >= self.config.queue_depth:
            return
        self.queues[unit].append(op)
        self.leave(op, t)

    def leave(self, op: Op, t: int) -> None:
        op.left = self.last_left = t
        self.next += 1
        self.left_before = self.next

    def fetch(self, t: int, left_before: int) -> None:
        end = self.offset + self.length
        if self.fetch_at >= end:
            return
        size = self.config.fetch_burst_bytes
        behind = min(end, self.fetch_at - self.fetch_at % size + size)
        if (behind - self.offset) // INSTRUCTION_BYTES - left_before > self.config.fetch_depth:
            return
        if behind > self.lease.window:
            self.bad("WINDOW", (self.fetch_at - self.offset) // INSTRUCTION_BYTES, self.fetch_at)
            return
        burst = Burst(self.fetch_at, behind, "fetch", t)
        self.fetched.append(burst)
        self.lease.slots[self.number].queues[0].append(burst)
        self.fetch_at = behind

    def arrive(self, t: int) -> None:
        if self.held != "reached":
            return
        op = self.ops[self.next]
        early = op.what["early"] if op.what.opcode is Opcode.SYNC else 0
        if early:
            if self.save or len(self.queues[Unit.SAVE]) >= early:
                return
        elif any(self.queues.values()) or self.load or self.load_open or self.compute or self.save:
            return
        wait = (
            self.config.ddr.write_latency - 1
        )  # a write is complete here when its buffer is free, one cycle after its end
        if any(b.complete is None or b.complete + wait > t for b in self.unacknowledged):
            return
        if op.what.opcode is Opcode.END:
            self.held = "over"
            op.ended = op.left = t
            self.lease.progress = t
        else:
            self.held = "waiting"


class LeaseModel:
    """All cores of one lease, alone on the device."""

    def __init__(
        self,
        config: HardwareConfig,
        cores: list[int],
        streams: list[bytes],
        offsets: list[int],
        window: int,
        start: int = 0,
    ) -> None:
        self.config, self.window, self.start, self.progress = config, window, start, start
        self.mask = sum(1 << core for core in cores)
        self.banks = sorted({config.bank_of(core) for core in cores})
        self.cores = [Core(self, number, s, o) for number, s, o in sorted(zip(cores, streams, offsets, strict=True))]
        self.slots = {
            number: Slot(config.bank_of(number), number % config.cores_per_bank, ["fetch", "load"], [deque(), deque()])
            for number in sorted(cores)
        }
        for core in self.cores:
            for bank in self.banks:
                slot = self.lane(core, bank)
                slot.names.append(core)
                slot.queues.append(deque())
        self.end = -1
        self.fault: tuple[str, int, int, int] | None = None

    def lane(self, core: Core, bank: int) -> Slot:
        if bank == self.config.bank_of(core.number):
            return self.slots[core.number]
        home = [n for n in sorted(self.slots) if self.config.bank_of(n) == self.config.bank_of(core.number)]
        there = [n for n in sorted(self.slots) if self.config.bank_of(n) == bank]
        return self.slots[there[home.index(core.number) % len(there)]]

    def serve(self, slot: Slot, t: int) -> None:
        ddr, n = self.config.ddr, self.config.cores_per_bank
        if slot.busy is None:
            count = len(slot.queues)
            for place in range(count):
                who = (slot.turn + place) % count
                if slot.queues[who] and slot.queues[who][0].requested < t:
                    burst = slot.queues[who].popleft()
                    burst.lines_left = (burst.behind - 1) // ddr.line_bytes - burst.first // ddr.line_bytes + 1
                    slot.busy, slot.turn = burst, (who + 1) % count
                    break
        if slot.busy is not None and t % n == slot.local and t // n % ddr.period_rounds < ddr.active_rounds:
            slot.busy.lines_left -= 1
            if slot.busy.lines_left == 0:
                write = isinstance(slot.busy.owner, Core)
                slot.busy.complete = t + (1 if write else ddr.read_latency)
                slot.busy = None

    def run(self, limit: int = 1_000_000) -> None:
        """Step until done or faulted."""
        release = -1
        for t in range(self.start, self.start + limit):
            for number in self.slots:
                self.serve(self.slots[number], t)
            if t == release:
                for core in self.cores:
                    op = core.ops[core.next]
                    op.ended = t
                    core.held = None
                    core.leave(op, t - 1)
                self.progress = t
            for core in self.cores:
                core.step(t)
            for core in self.cores:
                if core.faults:
                    kind, index, address = min(core.faults, key=lambda fault: FAULTS.index(fault[0]))
                    self.fault, self.end = (kind, core.number, index, address), t
                    return
            if all(core.held == "waiting" for core in self.cores) and release <= t:
                release = t + self.config.sync_cycles
            if all(core.held == "over" for core in self.cores):
                self.end = t
                return
            if release > t:
                continue
            if t >= self.progress + self.config.watchdog_cycles:
                core = next(core for core in self.cores if core.held != "over")
                self.fault, self.end = ("WATCHDOG", core.number, core.next, 0), t
                return
        raise AssertionError("the model did not come to an end")
