"""The server's own attacks: a sound device withstands them, and each kind of broken one is found out."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from corepool.config import preset
from corepool.device.base import Completion, Device, Lease
from corepool.device.simulator import Simulator
from corepool.server.attacks import Verdict, run_attacks

NAMES = {"out-of-window", "foreign lease", "runaway stream", "bank flood"}


def attacked(device: Device, victim: int = 0, attacker: int = 1) -> list[Verdict]:
    return run_attacks(lambda: nullcontext(device), device.config, victim, attacker)


@pytest.mark.parametrize("config", ["tiny", "u200"])
def test_a_sound_device_withstands_all(config: str) -> None:
    verdicts = attacked(Simulator(preset(config)))
    assert {each.attack for each in verdicts} == NAMES
    assert [each for each in verdicts if not each.passed] == []


class Leaky(Simulator):
    """A lease beside another one writes into the other's window."""

    def start(self, lease: Lease) -> int:
        held = getattr(self, "held", [])
        for other in held:
            if other is not lease:
                self.write(lease, 1024, np.full(64, 7, np.uint8))
        self.held = [*held, lease]
        return super().start(lease)

    def close_lease(self, lease: Lease) -> None:
        self.held = [each for each in getattr(self, "held", []) if each is not lease]
        super().close_lease(lease)


class Slow(Simulator):
    """A lease takes longer when another one is there."""

    count = 0

    def open_lease(self, *arguments: Any) -> Lease:
        self.count += 1
        return super().open_lease(*arguments)

    def close_lease(self, lease: Lease) -> None:
        self.count -= 1
        super().close_lease(lease)

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        done = super().wait(lease, timeout_cycles)
        return Completion(done.cycles + self.count, done.start_cycle, done.end_cycle, done.fault)


class Blind(Simulator):
    """Faults are not told."""

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        done = super().wait(lease, timeout_cycles)
        return Completion(done.cycles, done.start_cycle, done.end_cycle)


@pytest.mark.parametrize(
    ("kind", "told"), [(Leaky, "memory changed"), (Slow, "cycles instead of"), (Blind, "no fault")]
)
def test_a_broken_device_is_found_out(kind: Callable[..., Simulator], told: str) -> None:
    verdicts = attacked(kind(preset("tiny")))
    failed = [each for each in verdicts if not each.passed]
    assert len(failed) >= len(verdicts) - 1
    assert all(told in each.detail for each in failed)
