"""The window check: does a burst lie inside its lease's window? Also how a burst is asked for at a slot.

It must not know who asks or where in the bank the window lies.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.interfaces import ADDRESS_BITS

PAGE_BITS = 12  # windows begin at multiples of 4096 bytes, so cuts at burst_bytes do not depend on where they lie


def line_shift(config: HardwareConfig) -> int:
    """Bits of a byte's place within its line."""
    return config.ddr.line_bytes.bit_length() - 1


def request_layout(config: HardwareConfig) -> data.StructLayout:
    """A burst at a slot: its first line (offset in the window), how many lines follow that one, and its bytes."""
    longest = max(config.burst_bytes, config.fetch_burst_bytes)
    return data.StructLayout(
        {
            "line": ADDRESS_BITS - line_shift(config),
            "more": max(1, (longest // config.ddr.line_bytes - 1).bit_length()),
            "bytes": longest.bit_length(),
        }
    )


class RequestSignature(wiring.Signature):
    """A requester seen from its own side: ``pending`` with ``payload``; ``take`` in the cycle of the grant."""

    def __init__(self, config: HardwareConfig) -> None:
        super().__init__({"pending": Out(1), "payload": Out(request_layout(config)), "take": In(1)})


def assign_request(config: HardwareConfig, payload: Any, address: Value, length: Value) -> list[Any]:
    """Statements that give a request the lines of the ``length`` > 0 bytes at ``address``."""
    shift = line_shift(config)
    return [
        payload.line.eq(address[shift:]),
        payload.more.eq((address[:shift] + length - 1)[shift:]),
        payload.bytes.eq(length),
    ]


class WindowCheck(wiring.Component):
    """Combinational. ``inside``: all of the ``length`` > 0 bytes from ``address`` lie at offsets 0..``last``.

    ``beyond`` says that the address is 2^32 more than it seems.
    """

    def __init__(self, bits: int) -> None:
        if bits < 1:
            raise ValueError(f"a length has at least 1 bit, not {bits}")
        super().__init__(
            {
                "address": In(ADDRESS_BITS),
                "beyond": In(1),
                "length": In(bits),
                "last": In(ADDRESS_BITS),
                "inside": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        behind = Signal(ADDRESS_BITS + 1)
        m.d.comb += [
            behind.eq(self.address + self.length),
            self.inside.eq(~self.beyond & (behind <= self.last + 1)),
        ]
        return m
