"""Traces of requests: whose they are, what they hold, how many there are."""

import itertools

import pytest

from corepool.errors import DeadlineExceededError, NotFoundError
from corepool.server.api import Identity, Inferred, InferRequest, Role, Timings
from corepool.server.traces import Traces, request_id

ALICE = Identity(Role.TENANT, "alice", "k")
BOB = Identity(Role.TENANT, "bob", "k")
OPERATOR = Identity(Role.ADMIN, "", "k")
TIMES = Timings(queue_ns=1_000_000, upload_ns=2_000_000, compute_ns=5_000_000, download_ns=1_500_000)
DONE = Inferred("m", "2", {}, 70, 0.5, 4, "default", TIMES)


def note(traces: Traces, ident: str, outcome: Inferred | BaseException = DONE, who: Identity = ALICE) -> None:
    token = request_id.set(ident)
    request = InferRequest("m", {})
    traces.started(who, request)
    traces.ended(who, request, outcome, 10_000_000)
    request_id.reset(token)


def test_stages_stand_one_after_the_other_within_the_request() -> None:
    traces = Traces()
    note(traces, "r1")
    events = [each for each in traces.get(ALICE, "r1")["traceEvents"] if each["ph"] == "X"]
    whole, *stages = events
    assert whole["name"] == "infer m"
    assert whole["dur"] == 10_000
    assert whole["args"] == {
        "id": "r1", "outcome": "success", "version": "2", "cycles": 70, "device_us": 0.5, "cores": 4, "lease": "default"
    }  # fmt: skip
    assert [(each["name"], each["dur"]) for each in stages] == [
        ("queue", 1000), ("upload", 2000), ("compute", 5000), ("download", 1500)
    ]  # fmt: skip
    for before, after in itertools.pairwise(stages):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert stages[0]["ts"] == whole["ts"]
    assert stages[-1]["ts"] + stages[-1]["dur"] <= whole["ts"] + whole["dur"]


def test_what_failed_has_a_trace_too() -> None:
    traces = Traces()
    note(traces, "r1", DeadlineExceededError("late"))
    assert traces.get(ALICE, "r1")["traceEvents"][-1]["args"]["outcome"] == "timeout"


def test_not_yours_and_not_there_look_alike() -> None:
    traces = Traces()
    note(traces, "r1")
    note(traces, "r1", who=BOB)
    assert "tenant bob" in str(traces.get(BOB, "r1"))
    assert "tenant alice" in str(traces.get(ALICE, "r1"))
    note(traces, "r2")
    with pytest.raises(NotFoundError) as theirs:
        traces.get(BOB, "r2")
    with pytest.raises(NotFoundError) as absent:
        traces.get(BOB, "r3")
    assert str(theirs.value).replace("r2", "r3") == str(absent.value)
    assert traces.get(OPERATOR, "r2")
    traces.forget("alice")
    with pytest.raises(NotFoundError):
        traces.get(OPERATOR, "r2")


def test_only_the_latest_are_kept() -> None:
    traces = Traces(kept=10)
    for number in range(100):
        note(traces, f"r{number}")
    assert traces.get(ALICE, "r90")
    for gone in ("r89", ""):
        with pytest.raises(NotFoundError):
            traces.get(ALICE, gone)
