"""Runs one block of hardware with a testbench.

It must not know any block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from amaranth.sim import Simulator

Bench = Callable[[Any], Awaitable[None]]


def simulate(block: Any, bench: Bench, *background: Bench, clock: bool = True) -> None:
    """Simulate until the testbench ends, with others beside it; ``clock`` False: a block without memory."""
    simulator = Simulator(block)
    if clock:
        simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    for process in background:
        simulator.add_testbench(process, background=True)
    simulator.run()
