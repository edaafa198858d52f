"""Metrics: names and labels as promised, read by Prometheus' own parser; bounded whatever clients do."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from corepool.config import preset
from corepool.errors import DeadlineExceededError, FaultError, TooManyRequestsError
from corepool.server import dashboard
from corepool.server.api import Identity, Inferred, InferRequest, LeaseRequest, Role, Timings
from corepool.server.app import Server, assembled
from corepool.server.exposition import Family, Histogram, exposition
from corepool.server.logging import set_up
from corepool.server.meters import SECOND, CardMeters, fault_kind
from corepool.server.observing import OTHER, InferenceMeters, TenantLabels
from corepool.server.settings import Settings
from corepool.server.store import TenantRow
from corepool.server.tenants import SYSTEM

PROMISED = {
    "corepool_inference_requests": "counter",
    "corepool_inference_duration_seconds": "histogram",
    "corepool_core_busy_ratio": "gauge",
    "corepool_lease_cores": "gauge",
    "corepool_lease_resizes": "counter",
    "corepool_resize_seconds": "histogram",
    "corepool_quota_cores_limit": "gauge",
    "corepool_quota_cores_used": "gauge",
    "corepool_cleared_bytes": "counter",
    "corepool_faults": "counter",
    "corepool_ddr_bytes": "counter",
}
NV = (
    *("request_success", "request_failure", "count", "exec_count", "pending_request_count", "request_duration_us"),
    *("queue_duration_us", "compute_input_duration_us", "compute_infer_duration_us", "compute_output_duration_us"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = Settings(config="tiny", state_dir=tmp_path_factory.mktemp("metrics") / "state")
    wanted = settings.metrics.model_copy(update={"tenants": 2, "nv_names": True})
    settings = settings.model_copy(update={"metrics": wanted})
    with assembled(settings, set_up("error", "console")) as made:
        for name in ("alice", "bob", "carol", "dave"):
            made.tenants.add(SYSTEM, TenantRow(name, quota_cores=2))
        yield made


def get(server: Server, method: str = "GET", path: str = "/metrics") -> tuple[int, str]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(server.metrics({"type": "http", "method": method, "path": path}, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], sent[1]["body"].decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_promised_names_and_kinds(server: Server) -> None:
    _, text = get(server)
    found = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {name: found.get(name) for name in PROMISED} == PROMISED
    for name in NV:
        assert f"# TYPE nv_inference_{name} {'gauge' if 'pending' in name else 'counter'}\n" in text


def test_names_follow_the_rules(server: Server) -> None:
    """The rules of Prometheus' own checker: help everywhere, counters end in _total, base units, no colons."""
    _, text = get(server)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert kinds.keys() == helps.keys()
    for name, kind in kinds.items():
        assert re.fullmatch(r"[a-z_][a-z0-9_]*", name)
        if name.startswith("corepool_"):
            assert name.endswith("_total") == (kind == "counter"), name
            assert not re.search(r"_(ms|us|ns|milliseconds|kib|mib|percent)(_|$)", name)


def test_idle_tenants_have_zeros_and_the_rest_is_other(server: Server) -> None:
    page = samples(get(server)[1])
    tenants = {dict(labels).get("tenant") for _, labels in page} - {None, ""}
    assert tenants == {"alice", "bob", OTHER}
    assert page["corepool_quota_cores_limit", frozenset({("tenant", OTHER)})] == 4
    assert page["corepool_lease_cores", frozenset({("tenant", "bob"), ("lease", "default")})] == 0
    assert page["corepool_faults_total", frozenset({("tenant", "bob"), ("kind", "window")})] == 0
    key = frozenset({("tenant", "bob"), ("model", ""), ("version", ""), ("outcome", "success")})
    assert page["corepool_inference_requests_total", key] == 0


def test_leases_show_up_and_go(server: Server) -> None:
    who = Identity(Role.TENANT, "alice", "test")
    server.engine.create_lease(who, LeaseRequest("work", 2, 2))
    page = samples(get(server)[1])
    assert page["corepool_lease_cores", frozenset({("tenant", "alice"), ("lease", "work")})] == 2
    assert page["corepool_quota_cores_used", frozenset({("tenant", "alice")})] == 2
    server.engine.release_lease(who, "work")
    page = samples(get(server)[1])
    assert ("corepool_lease_cores", frozenset({("tenant", "alice"), ("lease", "work")})) not in page
    assert page["corepool_quota_cores_used", frozenset({("tenant", "alice")})] == 0
    assert page["corepool_cleared_bytes_total", frozenset({("device", "0")})] > 0


def test_only_the_page_is_there(server: Server) -> None:
    assert get(server, path="/")[0] == 404
    assert get(server, method="POST")[0] == 405
    assert get(server, method="HEAD") == (200, "")


def done(version: str = "1", **times: int) -> Inferred:
    return Inferred("m", version, {"y": np.zeros(1)}, 7, 0.1, 2, "default", Timings(**times))


def test_inferences_are_counted_by_outcome_and_stage() -> None:
    meters = InferenceMeters()
    who = Identity(Role.TENANT, "t", "k")
    for outcome in (done(queue_ns=2_000_000, compute_ns=5_000_000), DeadlineExceededError("late"), FaultError("x"),
                    TooManyRequestsError("many", 1.0), asyncio.CancelledError(), RuntimeError("oops")):  # fmt: skip
        request = InferRequest("m", {})
        meters.started(who, request)
        assert meters.rows["t", "m", "1"].pending == 1
        meters.ended(who, request, outcome, 9_000_000)
    row = meters.rows["t", "m", "1"]
    assert row.outcomes == {"success": 1, "rejected": 1, "cancelled": 1, "timeout": 1, "fault": 1, "error": 1}
    assert (row.pending, row.request_ns) == (0, 9_000_000)
    assert row.stages["queue"].total == pytest.approx(0.002)
    assert row.stages["compute"].total == pytest.approx(0.005)


def test_a_hundred_thousand_model_names_take_no_room() -> None:
    latest = ""

    def resolve(tenant: str, model: str, version: str | None) -> str | None:
        return "1" if model == latest else None  # each is loaded, asked and unloaded

    meters = InferenceMeters(resolve, each=8)
    who = Identity(Role.TENANT, "t", "k")
    for number in range(100_000):
        latest = f"m{number}"
        request = InferRequest(latest, {})
        meters.started(who, request)
        meters.ended(who, request, done(), 1)
    assert len(meters.rows) <= 9
    assert sum(row.outcomes["success"] for row in meters.rows.values()) == 100_000


def test_models_beyond_the_bound_share_a_row() -> None:
    meters = InferenceMeters(each=4)
    who = Identity(Role.TENANT, "t", "k")
    for number in range(100):
        request = InferRequest(f"m{number}", {})
        meters.started(who, request)
        meters.ended(who, request, done(), 1)
    assert len(meters.rows) == 5
    assert meters.rows["t", OTHER, ""].outcomes["success"] == 96
    assert sum(row.pending for row in meters.rows.values()) == 0


def test_labels_stay_until_their_tenant_is_gone() -> None:
    labels = TenantLabels(2)
    labels.refresh(["b", "c"])
    labels.refresh(["a", "b", "c"])
    assert [labels.of(name) for name in "abc"] == [OTHER, "b", "c"]
    labels.refresh(["a", "c"])
    assert [labels.of(name) for name in "abc"] == ["a", OTHER, "c"]


def test_any_label_value_survives_the_text() -> None:
    family = Family("x_total", "counter", "What it is.")
    wild = 'a"b\\c\nd{},=é'
    family.add(3, {"name": wild})
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    other = Family("y_seconds", "histogram", "How long.")
    other.add_histogram(histogram, {})
    found = samples(exposition([family, other]))
    assert found["x_total", frozenset({("name", wild)})] == 3
    assert [found["y_seconds_bucket", frozenset({("le", le)})] for le in ("0.1", "1", "+Inf")] == [2, 3, 4]
    assert found["y_seconds_sum", frozenset()] == pytest.approx(7.65)


def test_busy_ratio_is_of_the_last_seconds() -> None:
    now = 1000 * SECOND
    meters = CardMeters(preset("tiny"), clock=lambda: now)
    meters.since = 0
    begin = meters.started((0, 1))
    now += 3 * SECOND
    assert meters.busy()[0][0] == pytest.approx(3 / 15)  # still running
    meters.ran((0, 1), begin, None)
    assert meters.busy()[0] == (pytest.approx(3 / 15), 3.0)
    assert meters.busy()[2] == (0.0, 0.0)
    now += 30 * SECOND
    assert meters.busy()[1] == (0.0, 3.0)


def test_runs_counted_together_are_counted_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    runs = []
    at = 500 * SECOND
    for _ in range(400):
        cores = ((0, 1), (2,), (0, 1, 2, 3))[random.integers(3)]
        at += int(random.integers(0, SECOND // 4))
        begin, at = at, at + int(random.integers(0, 2 * SECOND) ** (random.random() < 0.2))
        runs.append((cores, begin, at))

    def counted(together: int) -> list[tuple[float, float]]:
        monkeypatch.setattr("corepool.server.meters.TOGETHER", together)
        now = 400 * SECOND
        counters = type("Counted", (), {"bytes_read": (1, 2), "bytes_written": (3,)})
        made = CardMeters(preset("u200"), clock=lambda: now)
        for cores, begin, end in runs:
            now = begin
            assert made.started(cores) == begin
            now = end
            made.ran(cores, begin, counters)
        busy = made.busy()
        assert (made.read_bytes[:2], made.written_bytes[:1]) == ([len(runs), 2 * len(runs)], [3 * len(runs)])
        return busy

    found = [counted(together) for together in (1, 7, 1000)]
    for core in range(4):
        assert found[0][core][1] == sum(end - begin for cores, begin, end in runs if core in cores) / SECOND
    assert found[0] == found[1] == found[2]
    assert 0 < found[0][0][0] < 1


def test_stages_counted_together_are_counted_as_one_by_one() -> None:
    random = np.random.default_rng(4)
    bounds, values = (0.0, 0.001, 0.25, 1.0), random.choice([0.0, 0.001, 0.0011, 0.2, 0.25, 3.0], 200)
    alone, together = Histogram(bounds), Histogram(bounds)
    for value in values:
        alone.observe(value)
    together.observe_all(values[:50])
    together.observe_all(values[50:])
    assert together.counts == alone.counts
    assert together.total == pytest.approx(alone.total)


def test_kinds_of_faults() -> None:
    told = FaultError("the model was stopped by a fault: WINDOW on core 3, instruction 7 at address 9, cycle 1")
    assert fault_kind(told) == "window"
    assert fault_kind(FaultError("the model was unloaded before it could be placed")) == "other"


def test_counting_from_many_threads_loses_nothing() -> None:
    meters = CardMeters(preset("tiny"))

    def work() -> None:
        for _ in range(500):
            meters.cleared(2)
            meters.faulted("t", "bus")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert meters.cleared_bytes == 4000
    assert meters.faults["t", "bus"] == 2000


DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "corepool.json"
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def names(server: Server) -> set[str]:
    """Names of all samples, with the suffixes of histograms."""
    text = get(server)[1]
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    return kinds.keys() | {f"{name}_{end}" for name, kind in kinds.items() if kind == "histogram"
                           for end in ("bucket", "sum", "count")}  # fmt: skip


def test_the_dashboard_is_fresh_and_names_metrics_that_exist(server: Server) -> None:
    assert dashboard.main(["--check", str(DASHBOARD)]) == 0
    known, seen = names(server), set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            seen |= set(re.findall(r"\bcorepool_\w+", target["expr"]))
    assert seen - known == set()
    assert {re.sub("_bucket$", "", name) for name in seen} >= {
        f"{name}_total" if kind == "counter" else name for name, kind in PROMISED.items()
    }


def test_a_stale_dashboard_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert dashboard.main(["--check", str(tmp_path / "old.json")]) == 1
    assert "out of date" in capsys.readouterr().err
    assert dashboard.main([str(tmp_path / "old.json")]) == 0
    assert dashboard.main(["--check", str(tmp_path / "old.json")]) == 0


def test_the_manual_lists_the_metrics(server: Server) -> None:
    table = MANUAL.read_text(encoding="utf-8").partition("## Watching")[2].partition("\n## ")[0]
    listed = {name for row in re.findall(r"^\| (`corepool.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    there = set(re.findall(r"^# TYPE (corepool\S+)", get(server)[1], re.M))
    assert listed == there
