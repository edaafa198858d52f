"""The seams between hardware blocks: what a core and the pool around it exchange, and in which cycle.

It must not know how either side works; only sizes of the configuration enter.

Cycle numbers are those of docs/machine.md: a signal "in cycle t" is high between the clock edges t and t + 1. Signals
are driven by registers unless a combinational path is named here.
"""

from __future__ import annotations

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.errors import ConfigError

INSTRUCTION_BITS = 256
ADDRESS_BITS = 32
INDEX_BITS = 32

LINE_LEAD = 6  # the last line of a burst reaches the core so many cycles before the burst is complete


def check_config(config: HardwareConfig) -> HardwareConfig:
    """The configuration itself. Raises ConfigError where the hardware asks for more than the simulator does."""
    if not isinstance(config, HardwareConfig):
        raise ConfigError(f"hardware is built from a HardwareConfig, not from {type(config).__name__}")
    if config.ddr.read_latency < LINE_LEAD + 2:
        raise ConfigError(
            f"configuration {config.name!r}: read latency {config.ddr.read_latency} must be at least {LINE_LEAD + 2}"
        )
    return config


def length_bits(config: HardwareConfig) -> int:
    """Bits of a burst's length in bytes, 1..burst_bytes."""
    return config.burst_bytes.bit_length()


def burst_layout(config: HardwareConfig) -> data.StructLayout:
    """A data burst: first byte (offset in the lease's window), whether it lies beyond 4 GiB (then ``address`` is only
    its lower 32 bits, and it is outside of every window), length in bytes, index of its instruction in the stream."""
    return data.StructLayout({"address": ADDRESS_BITS, "beyond": 1, "length": length_bits(config), "index": INDEX_BITS})


class CoreSignature(wiring.Signature):
    """One core seen from its own side; the pool takes it flipped.

    **Streams.** ``instruction``: head of the fetch buffer, valid from the cycle in which it is complete; ``ready``
    (combinational) in the cycle in which it leaves. LOAD, COMPUTE and SAVE instructions leave into their queue. A SYNC
    stays at the head until ``release`` and leaves in that very cycle. END and what faults never leave. ``stream_end``:
    everything up to the end of the stream has left.

    **Reading.** ``read_request.valid`` (combinational from ``read_complete``) in the cycle in which a request is made;
    there is no ready, at most ``load_outstanding`` are open. A request that leaves the window is a fault that the pool
    raises. ``read_line`` carries every line of every burst of the core's loads in order, the last line of a burst
    LINE_LEAD cycles before its completion or earlier, lines at least ``cores_per_bank`` cycles apart. ``read_complete``
    in the cycle in which a burst is complete.

    **Writing.** ``write_room`` has a bit per bank: the core has a free buffer there; it is looked at in the cycle b in
    which a burst would begin. ``write_begin`` (combinational from ``write_room``) in cycle b, with ``write_burst`` and
    ``write_banks``, to be taken in that cycle; ``write_room`` must count this burst from b + 1 on. A begin outside
    the window, or into a bank without a core of the lease, is a fault that the pool raises. A bank that the lease does
    not have, or that does not exist, must look as if it had room. ``write_word`` carries its words in cycles
    b + 1 .. b + words without a gap, ``first`` and ``last`` marking the ends; the request is made in cycle b + words.
    The next ``write_begin`` comes in that cycle at the earliest. ``writes_pending``: some write of this core is not
    acknowledged yet, from b + 1 to the last cycle before its acknowledgement.

    **Reports**, all exactly one cycle after the event: ``fault`` (level: the lowest code of the first cycle with a
    fault, and the instruction's index, until the next ``start``), ``sync_arrived`` with ``sync_layer`` and
    ``end_arrived`` (levels), ``reached`` (index of the instruction at the dispatcher), ``busy`` (a bit per unit: LOAD,
    COMPUTE, SAVE; high in one cycle for each between an instruction's start and the unit's next freedom), ``done``
    (pulses: an instruction of that unit ended), ``step`` (the array takes operands).

    **Control.** ``start``: pulse in the cycle before the lease's first; resets queues, tokens and ``reached``, keeps
    memories. ``release``: pulse in the cycle before the next instruction may leave, i.e. in cycle
    last arrival + sync_cycles - 1. ``drain``: level; no SYNC is early, and one that has arrived early has not.
    ``lease_cores``: mask that every SYNC must carry. ``halt``: level; from the
    next cycle on nothing is started, requested, written or reported; lines that come are dropped. ``clear``: pulse
    while halted or idle; then every memory of the core is zeroed, and ``cleared`` is high from when that is done
    until the next ``clear``.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = check_config(config)
        line_bits, word_bits = 8 * config.ddr.line_bytes, 8 * config.word_bytes
        super().__init__(
            {
                "instruction": In(stream.Signature(INSTRUCTION_BITS)),
                "stream_end": In(1),
                "read_request": Out(wiring.Signature({"valid": Out(1), "payload": Out(burst_layout(config))})),
                "read_line": In(wiring.Signature({"valid": Out(1), "data": Out(line_bits)})),
                "read_complete": In(1),
                "write_room": In(config.banks),
                "write_begin": Out(1),
                "write_burst": Out(burst_layout(config)),
                "write_banks": Out(8),
                "write_word": Out(
                    wiring.Signature({"valid": Out(1), "data": Out(word_bits), "first": Out(1), "last": Out(1)})
                ),
                "writes_pending": In(1),
                "fault": Out(wiring.Signature({"valid": Out(1), "code": Out(3), "index": Out(INDEX_BITS)})),
                "sync_arrived": Out(1),
                "sync_layer": Out(16),
                "end_arrived": Out(1),
                "reached": Out(INDEX_BITS),
                "busy": Out(3),
                "done": Out(3),
                "step": Out(1),
                "start": In(1),
                "release": In(1),
                "drain": In(1),
                "lease_cores": In(32),
                "halt": In(1),
                "clear": In(1),
                "cleared": Out(1),
            }
        )
