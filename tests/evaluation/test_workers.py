"""The crew: results in order from other processes, packages that labs share, errors and ends.

It must not know experiments.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from corepool.config import preset
from corepool.errors import CorepoolError, InputError
from corepool.evaluation.lab import Lab, Need
from corepool.evaluation.workers import Crew, crew, in_turn

TINY = preset("tiny")


def square(lab: Lab, number: int) -> tuple[int, int, int]:
    return number * number, lab.seed, os.getpid()


def fail(lab: Lab, number: int) -> None:
    raise InputError(f"number {number} is wrong")


def die(lab: Lab, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(lab: Lab, seconds: float) -> None:
    time.sleep(seconds)


def quiet(what: str, share: float) -> None:
    assert what
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew(partial(Lab, tmp_path_factory.mktemp("lab"), True, 7, TINY), 2) as made:
        assert made is not None
        yield made


def items(numbers: range) -> list[tuple[str, int]]:
    return [(f"number {number}", number) for number in numbers]


def test_results_come_in_order_from_other_processes(two: Crew) -> None:
    results = two.each(square, items(range(20)), quiet)
    assert [result[:2] for result in results] == [(n * n, 7) for n in range(20)]
    assert os.getpid() not in {result[2] for result in results}
    assert two.cpu_s >= 0


def test_one_process_needs_no_crew(tmp_path: Path) -> None:
    with crew(partial(Lab, tmp_path), 1) as none:
        assert none is None
    assert in_turn(Lab(tmp_path, seed=7), square, items(range(3)), quiet) == [(n * n, 7, os.getpid()) for n in range(3)]


def test_errors_keep_their_kind_and_later_work_goes_on(two: Crew) -> None:
    with pytest.raises(InputError, match="number 3 is wrong"):
        two.each(fail, items(range(3, 4)), quiet)
    assert two.each(square, items(range(3)), quiet)[2][0] == 4


def test_a_process_that_is_killed_is_one_clear_error(two: Crew) -> None:
    with pytest.raises(CorepoolError, match=r"a process of the evaluation was ended; .* Try --jobs 1"):
        two.each(die, items(range(2)), quiet)


def test_who_wants_to_end_does_not_wait_for_work(two: Crew) -> None:
    def enough(what: str, share: float) -> None:
        raise KeyboardInterrupt

    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        two.each(sleep, [("sleeping", 300.0)] * 4, enough)
    assert time.perf_counter() - begin < 60


def test_packages_are_shared_by_what_they_are_made_of(two: Crew, tmp_path: Path) -> None:
    lab = Lab(tmp_path, True, 7, TINY, crew=Crew(partial(Lab, tmp_path, True, 7, TINY), 2))
    assert lab.crew is not None
    try:
        lab.prepare([Need("mobilenet_v1"), Need("mobilenet_v1")], quiet)
        made = sorted(tmp_path.glob("mobilenet_v1-*.cpk"))
        assert len(made) == 1
        before = made[0].stat().st_mtime_ns
        package = lab.package("mobilenet_v1")
        assert package.meta["macs"] > 0
        assert not len(package.weights)
        cost = lab.static_cost("mobilenet_v1")
        assert cost.package_bytes > cost.weight_bytes > 0
        assert sorted(tmp_path.glob("mobilenet_v1-*.cpk")) == made
        assert made[0].stat().st_mtime_ns == before
        taken = lab.latencies("mobilenet_v1", [(1,), (2,)], quiet)
        assert taken[1,] > taken[2,] > 0
        kept = json.loads(next(tmp_path.glob("*.latencies.json")).read_text())
        assert {tuple(shape): value for shape, value in kept} == taken
        assert Lab(tmp_path, True, 7, TINY).latencies("mobilenet_v1", [(2,)], quiet) == {(2,): taken[2,]}
    finally:
        lab.crew.close()
