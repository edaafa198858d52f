"""The judge of buses beside the compiled hardware against the one of the Amaranth tests, written apart: equal verdicts.

It must not know the pool; traces are planted or random, and the first cycle at which each judge objects is compared.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corepool.device import rtl_build
from support.axi import FULL, Axi4Rules, LiteRules
from support.axi_traces import (
    GOOD,
    LIMITS,
    LINE,
    LITE_PLANTED,
    LITE_QUIET,
    OPEN_READS,
    OPEN_WRITES,
    PLANTED,
    QUIET,
    Cycle,
    LiteTraffic,
    Traffic,
    spoiled,
)

COLUMNS = [name for channel in FULL for name in channel]
Verdict = tuple[int, str]  # the cycle in which a rule is broken (the trace's length: none is), and which


class Judge:
    """The rules in C++."""

    def __init__(self, folder: Path) -> None:
        library = folder / "judge.so"
        source, harness = Path(__file__).with_name("judge.cpp"), f"-I{rtl_build.HARNESS}"
        flags = ["-shared", "-fPIC", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-O1"]
        rtl_build._run([rtl_build._compiler(), *flags, harness, str(source), "-o", str(library)], folder)
        self._library = ctypes.CDLL(str(library))
        for function in (self._library.judge_axi4, self._library.judge_lite):
            function.restype = ctypes.c_char_p

    def _rows(self, trace: list[Cycle], quiet: Cycle) -> ctypes.Array[ctypes.c_uint64]:
        whole = [{**QUIET, **quiet, **cycle} for cycle in trace]
        values = [cycle.get(name, 0) for cycle in whole for name in COLUMNS]
        return (ctypes.c_uint64 * len(values))(*values)

    def axi4(self, trace: list[Cycle]) -> tuple[int, str, int]:
        """The verdict, and what is left open."""
        cycle, left = ctypes.c_uint64(), ctypes.c_uint64()
        limits = (ctypes.c_uint32 * 6)(LINE, 1, 3, 4, OPEN_READS, OPEN_WRITES)
        rows, ends = self._rows(trace, QUIET), (ctypes.byref(cycle), ctypes.byref(left))
        rule = self._library.judge_axi4(rows, ctypes.c_uint64(len(trace)), limits, *ends)
        return cycle.value, (rule or b"").decode(), left.value

    def lite(self, trace: list[Cycle]) -> Verdict:
        cycle = ctypes.c_uint64()
        rule = self._library.judge_lite(self._rows(trace, LITE_QUIET), ctypes.c_uint64(len(trace)), ctypes.byref(cycle))
        return cycle.value, (rule or b"").decode()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(tmp_path_factory.mktemp("judge"))


def objection(rules: Axi4Rules | LiteRules, trace: list[Cycle], quiet: Cycle) -> int:
    """The cycle in which the judge in Python objects, or the trace's length."""
    for number, cycle in enumerate(trace):
        try:
            rules.see({**quiet, **cycle})
        except AssertionError:
            return number
    return len(trace)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violations(name: str, judge: Judge) -> None:
    trace, _ = PLANTED[name]
    cycle, rule, _ = judge.axi4(trace)
    assert cycle == len(trace) - 1
    assert rule


@pytest.mark.parametrize("name", LITE_PLANTED)
def test_planted_violations_on_the_register_port(name: str, judge: Judge) -> None:
    cycle, rule = judge.lite(LITE_PLANTED[name])
    assert cycle == len(LITE_PLANTED[name]) - 1
    assert rule


def test_what_keeps_the_rules_passes_and_leaves_nothing_open(judge: Judge) -> None:
    assert judge.axi4(GOOD) == (len(GOOD), "", 0)
    for cut in range(2, len(GOOD)):
        assert judge.axi4(GOOD[:cut])[2] > 0


def test_random_traffic_keeps_the_rules(rng: np.random.Generator, judge: Judge) -> None:
    for _ in range(20):
        traffic = Traffic(rng)
        trace = [traffic.cycle() for _ in range(200)]
        assert judge.axi4(trace)[:2] == (200, "")
        rules = Axi4Rules(LINE, LIMITS)
        assert objection(rules, trace, QUIET) == 200
        assert min(rules.seen[f"{channel}valid"] for channel in ("ar", "aw", "w", "r", "b")) > 5
        lite = LiteTraffic(rng)
        accesses = [lite.cycle() for _ in range(200)]
        assert judge.lite(accesses) == (200, "")
        seen = LiteRules()
        assert objection(seen, accesses, LITE_QUIET) == 200
        assert min(seen.seen.values()) > 5


def test_both_judges_object_in_the_same_cycle(rng: np.random.Generator, judge: Judge) -> None:
    """One bit of one cycle is turned round, in 1,500 traces; most of that breaks a rule."""
    broken = 0
    for _ in range(1500):
        traffic = Traffic(rng)
        trace = spoiled(rng, [traffic.cycle() for _ in range(40)], QUIET)
        cycle = judge.axi4(trace)[0]
        assert cycle == objection(Axi4Rules(LINE, LIMITS), trace, QUIET)
        broken += cycle < len(trace)
    assert 300 < broken < 1400


def test_both_judges_of_the_register_port_object_in_the_same_cycle(rng: np.random.Generator, judge: Judge) -> None:
    broken = 0
    for _ in range(500):
        lite = LiteTraffic(rng)
        trace = spoiled(rng, [lite.cycle() for _ in range(40)], LITE_QUIET)
        cycle, _ = judge.lite(trace)
        assert cycle == objection(LiteRules(), trace, LITE_QUIET)
        broken += cycle < len(trace)
    assert 100 < broken < 450


def test_every_rule_is_broken_by_some_trace(rng: np.random.Generator, judge: Judge) -> None:
    """Texts of rules stand in the C++ source; none is left that no trace brings about."""
    source = (rtl_build.HARNESS / "rules.h").read_text()
    texts = set(re.findall(r'"([^"]* [^"]*)"', source))
    seen = {judge.axi4(trace)[1] for trace, _ in PLANTED.values()}
    seen |= {judge.lite(trace)[1] for trace in LITE_PLANTED.values()}
    judges: list[tuple[type[Traffic] | type[LiteTraffic], Cycle, Callable[[list[Cycle]], str]]] = [
        (Traffic, QUIET, lambda trace: judge.axi4(trace)[1]),
        (LiteTraffic, LITE_QUIET, lambda trace: judge.lite(trace)[1]),
    ]
    for number in range(3000):
        make, signals, verdict = judges[number % 2]
        traffic = make(rng)
        seen.add(verdict(spoiled(rng, [traffic.cycle() for _ in range(30)], signals)))
    assert texts <= seen, texts - seen
    assert len(texts) > 25
