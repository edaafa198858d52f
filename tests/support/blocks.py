"""Runs one block of hardware with a testbench.

It must not know any block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from amaranth.sim import Simulator


def simulate(block: Any, bench: Callable[[Any], Awaitable[None]], clock: bool = True) -> None:
    """Simulate until the testbench ends; ``clock`` False: a block without memory."""
    simulator = Simulator(block)
    if clock:
        simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
