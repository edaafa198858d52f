"""The buses at the pool's edge: one AXI4 master per bank, one AXI4-Lite register port, and the bridge behind that.

It must not know what registers mean or what is moved; only widths of the configuration enter.

Every access to a bank is one beat of one line: INCR, length 0, so bursts are never interleaved and never cross 4 KiB.
AW and W of a line are offered in the same cycle and accepted independently. The ID is the number of the core whose
slot (reads) or whose data (writes) it is; answers keep their order per ID.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig

BUS_ADDRESS_BITS = 32
LITE_ADDRESS_BITS = 16
OKAY, SLVERR = 0, 2
INCR = 1
SIZE_MOST = 7  # AXI4 ends at 128 bytes a beat; wider lines (only `large`) keep the code of 128


def id_bits(config: HardwareConfig) -> int:
    """Width of AXI IDs: the number of a core."""
    return max(1, (config.cores - 1).bit_length())


def size_code(config: HardwareConfig) -> int:
    """AxSIZE of one line."""
    return min(SIZE_MOST, config.ddr.line_bytes.bit_length() - 1)


class Axi4Signature(wiring.Signature):
    """AXI4 seen from the master (the pool): IDs of ``id_bits``, 32-bit byte addresses, data as wide as a DDR line."""

    def __init__(self, config: HardwareConfig) -> None:
        line_bytes = config.ddr.line_bytes
        address = {
            "id": id_bits(config),
            "addr": BUS_ADDRESS_BITS,
            "len": 8,
            "size": 3,
            "burst": 2,
        }
        members: dict[str, wiring.Member] = {}
        for channel in ("aw", "ar"):
            members |= {f"{channel}{name}": Out(width) for name, width in address.items()}
            members |= {f"{channel}valid": Out(1), f"{channel}ready": In(1)}
        members |= {"wdata": Out(8 * line_bytes), "wstrb": Out(line_bytes), "wlast": Out(1)}
        members |= {"wvalid": Out(1), "wready": In(1)}
        members |= {"bid": In(id_bits(config)), "bresp": In(2), "bvalid": In(1), "bready": Out(1)}
        members |= {"rid": In(id_bits(config)), "rdata": In(8 * line_bytes), "rresp": In(2), "rlast": In(1)}
        members |= {"rvalid": In(1), "rready": Out(1)}
        super().__init__(members)


class LiteSignature(wiring.Signature):
    """AXI4-Lite seen from the master (the host): 16-bit byte addresses, 32-bit data."""

    def __init__(self) -> None:
        super().__init__(
            {
                "awaddr": Out(LITE_ADDRESS_BITS), "awvalid": Out(1), "awready": In(1),
                "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
                "bresp": In(2), "bvalid": In(1), "bready": Out(1),
                "araddr": Out(LITE_ADDRESS_BITS), "arvalid": Out(1), "arready": In(1),
                "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
            }
        )  # fmt: skip


class RegisterBus(wiring.Signature):
    """What the bridge asks of a register file, seen from the bridge.

    ``write`` (with ``write_address``, ``write_data``) or ``read`` (with ``read_address``) are pulses; the register file
    answers in the next cycle with ``write_error``, or two cycles later with ``read_data`` and ``read_error``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "write": Out(1), "write_address": Out(LITE_ADDRESS_BITS), "write_data": Out(32), "write_error": In(1),
                "read": Out(1), "read_address": Out(LITE_ADDRESS_BITS), "read_data": In(32), "read_error": In(1),
            }
        )  # fmt: skip


class LiteBridge(wiring.Component):
    """AXI4-Lite to register accesses, one write and one read at a time; write strobes other than all four are errors.

    host: the bus (slave side). registers: the register file. An access takes three cycles or more.
    """

    def __init__(self) -> None:
        super().__init__({"host": In(LiteSignature()), "registers": Out(RegisterBus())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._writes(m)
        self._reads(m)
        return m

    def _writes(self, m: Module) -> None:
        host, registers = self.host, self.registers
        bad, whole, asked = Signal(2), Signal(), Signal()
        both = host.awvalid & host.wvalid & ~asked & ~host.bvalid
        m.d.comb += [
            host.awready.eq(both),
            host.wready.eq(both),
            whole.eq(host.wstrb == 0xF),
            registers.write.eq(both & whole),
            registers.write_address.eq(host.awaddr),
            registers.write_data.eq(host.wdata),
        ]
        m.d.sync += asked.eq(both)
        with m.If(both):
            m.d.sync += bad.eq(~whole)
        with m.If(asked):
            m.d.sync += [host.bvalid.eq(1), host.bresp.eq(Mux(bad | registers.write_error, SLVERR, OKAY))]
        with m.Elif(host.bready):
            m.d.sync += host.bvalid.eq(0)

    def _reads(self, m: Module) -> None:
        host, registers = self.host, self.registers
        asked, answered = Signal(), Signal()
        take = host.arvalid & ~asked & ~answered & ~host.rvalid
        m.d.comb += [host.arready.eq(take), registers.read.eq(take), registers.read_address.eq(host.araddr)]
        m.d.sync += [asked.eq(take), answered.eq(asked)]
        with m.If(answered):
            m.d.sync += [
                host.rvalid.eq(1),
                host.rdata.eq(registers.read_data),
                host.rresp.eq(Mux(registers.read_error, SLVERR, OKAY)),
            ]
        with m.Elif(host.rready):
            m.d.sync += host.rvalid.eq(0)
