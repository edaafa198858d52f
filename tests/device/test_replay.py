"""Runs that repeat the one before are not worked out again: nobody can tell, whatever comes between.

Witness: the same calls on a simulator that works everything out.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.small import small_graph

from corepool.compiler.dynamic.linker import link
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.base import Boundary, Lease
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError

TINY = preset("tiny")
WINDOW = 1 << 16


class Both:
    """Two simulators that are asked the same; every answer is compared."""

    def __init__(self, package: ModelPackage) -> None:
        self.package = package
        self.quick, self.plain = Simulator(TINY), Simulator(TINY, replay=False)
        self.leases: list[Lease] = []

    def open(self, cores: tuple[int, ...]) -> None:
        for device in (self.quick, self.plain):
            lease = device.open_lease(cores, WINDOW)
            device.write(lease, 0, self.package.weights)
            device.load_streams(lease, link(self.package, cores, TINY).streams, self.offset)
        self.leases.append(lease)

    @property
    def offset(self) -> int:
        return int(self.package.meta["window"]["streams_offset"])

    def ask(self, name: str, *arguments: object) -> object:
        found = []
        for device in (self.quick, self.plain):
            try:
                found.append(getattr(device, name)(*arguments))
            except DeviceError as error:
                found.append(str(error))
        assert repr(found[0]) == repr(found[1]), name
        assert self.quick.cycle == self.plain.cycle
        return found[0]

    def same(self, lease: Lease) -> None:
        """Everything that can be seen of a lease."""
        self.ask("counters", lease)
        self.ask("running", lease)
        for bank in lease.banks:
            mine, other = (device.read(lease, 0, WINDOW, bank) for device in (self.quick, self.plain))
            assert np.array_equal(mine, other)
        for mine, other in zip(self.quick.timeline(lease), self.plain.timeline(lease), strict=True):
            assert np.array_equal(mine.started, other.started)
            assert np.array_equal(mine.ended, other.ended)


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return compile_graph(small_graph(), TINY).package


def test_repeated_runs_are_not_worked_out_again(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    from corepool.device import timing

    worked, advance = [], timing.advance
    monkeypatch.setattr(timing, "advance", lambda *rest: worked.append(1) or advance(*rest))
    both = Both(package)
    both.open((0, 1))
    for _ in range(5):
        both.ask("start", both.leases[0])
        both.ask("wait", both.leases[0])
        both.same(both.leases[0])
    assert len(worked) == 5 + 1  # the plain one every time, the quick one once


def test_a_stream_that_was_written_over_is_read_again(package: ModelPackage) -> None:
    both = Both(package)
    both.open((0,))
    lease = both.leases[0]
    first = both.ask("run", lease)
    assert repr(both.ask("run", lease)) != repr(first)  # later
    both.ask("write", lease, both.offset + 1, b"\xff\xff")  # no instruction any more
    assert "fault=None" not in repr(both.ask("run", lease))
    both.same(lease)


def random_step(both: Both, random: np.random.Generator) -> None:
    """One call of any kind on one of the leases, as a rule one that goes well."""
    lease = both.leases[int(random.integers(len(both.leases)))]
    match str(random.choice(["run", "run", "run", "start", "wait", "part", "stop", "input", "same", "other", "clear"])):
        case "run" | "start" as what:
            if not both.ask("running", lease):
                both.ask(what, lease)
        case "wait" if both.ask("running", lease):
            both.ask("wait", lease)
        case "part" if both.ask("running", lease):
            both.ask("wait", lease, int(random.integers(1, 3000)))
        case "stop" if both.ask("running", lease):
            both.ask("stop", lease, Boundary.LAYER, int(random.integers(2)))
        case "input":
            port = both.package.meta["inputs"][0]
            both.ask("write", lease, port["offset"], random.integers(0, 256, 600).astype(np.uint8).tobytes())
        case "same":
            both.same(lease)
        case "other" if not both.ask("running", lease) and random.random() < 0.3:
            streams = link(both.package, lease.cores, TINY, int(random.integers(2))).streams
            both.ask("load_streams", lease, streams, both.offset)
        case "clear" if not both.ask("running", lease) and random.random() < 0.2:
            both.ask("clear", lease)
            both.ask("write", lease, 0, both.package.weights)
            both.ask("load_streams", lease, link(both.package, lease.cores, TINY).streams, both.offset)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_can_tell(package: ModelPackage, seed: int) -> None:
    both, random = Both(package), np.random.default_rng(seed)
    both.open((0,))
    both.open((1, 2) if TINY.cores > 2 else (1,))
    for _ in range(150):
        random_step(both, random)
    for lease in both.leases:
        both.same(lease)
