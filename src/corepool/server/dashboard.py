"""A Grafana dashboard, made from a table: `python -m corepool.server.dashboard [--check] FILE`.

It must not know how metrics are made; the table names them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, HEIGHT = 12, 8  # of a panel; a row is 24 wide
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """``queries``: expressions and legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    stacked: bool = False


PANELS = (
    Panel("Ready", "bool_yes_no", (("corepool_ready", "ready"),)),
    Panel("Cores by state", "short", (("sum by (state) (corepool_cores)", "{{state}}"),), stacked=True),
    Panel("Cores by tenant", "short", (
        ('sum by (tenant) (corepool_lease_cores{tenant=~"$tenant"})', "{{tenant}}"),), True),
    Panel("Busy cores", "percentunit", (("corepool_core_busy_ratio", "core {{core}}"),)),
    Panel("Inferences", "reqps", ((
        f'sum by (tenant) (rate(corepool_inference_requests_total{{tenant=~"$tenant",outcome="success"}}{RATE}))',
        "{{tenant}}"),)),
    Panel("Not answered", "reqps", ((
        "sum by (tenant, outcome) "
        f'(rate(corepool_inference_requests_total{{tenant=~"$tenant",outcome!="success"}}{RATE}))',
        "{{tenant}} {{outcome}}"),)),
    Panel("Refused requests", "reqps", ((
        f'sum by (tenant, code) (rate(corepool_requests_total{{tenant=~"|$tenant",code!~"200|201|202|OK"}}{RATE}))',
        "{{tenant}} {{code}}"),)),
    Panel("Requests by status", "reqps", (
        (f"sum by (transport, code) (rate(corepool_requests_total{RATE}))", "{{transport}} {{code}}"),)),
    Panel("Time of each stage, 99 of 100", "s", ((
        "histogram_quantile(0.99, sum by (le, stage) "
        f'(rate(corepool_inference_duration_seconds_bucket{{tenant=~"$tenant"}}{RATE})))', "{{stage}}"),)),
    Panel("Waiting or running", "short", (
        ('sum by (tenant) (corepool_inference_pending{tenant=~"$tenant"})', "{{tenant}}"),)),
    Panel("Quota", "short", (
        ('corepool_quota_cores_used{tenant=~"$tenant"}', "{{tenant}} asks for"),
        ('corepool_quota_cores_limit{tenant=~"$tenant"}', "{{tenant}} may have"))),
    Panel("Leases", "short", (('sum by (state) (corepool_leases{tenant=~"$tenant"})', "{{state}}"),), True),
    Panel("Re-deals", "ops", (
        (f'sum by (tenant) (rate(corepool_lease_resizes_total{{tenant=~"$tenant"}}{RATE}))', "{{tenant}}"),)),
    Panel("Time of a re-deal, 99 of 100", "s", ((
        f"histogram_quantile(0.99, sum by (le) (rate(corepool_resize_seconds_bucket{RATE})))", "all tenants"),)),
    Panel("Memory traffic", "Bps", (
        (f"sum by (bank, dir) (rate(corepool_ddr_bytes_total{RATE}))", "bank {{bank}} {{dir}}"),), True),
    Panel("Faults", "ops", (
        (f'sum by (tenant, kind) (rate(corepool_faults_total{{tenant=~"$tenant"}}{RATE}))', "{{tenant}} {{kind}}"),)),
    Panel("Memory cleared", "Bps", ((f"rate(corepool_cleared_bytes_total{RATE})", "device {{device}}"),)),
    Panel("Busy time of all cores", "short", ((f"sum(rate(corepool_core_busy_seconds_total{RATE}))", "cores"),)),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "corepool",
        "uid": "corepool",
        "tags": ["corepool"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_source(), _tenant()]},
        "panels": [_panel(index, panel) for index, panel in enumerate(PANELS)],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _tenant() -> dict[str, Any]:
    query = "label_values(corepool_quota_cores_limit, tenant)"
    return {
        "name": "tenant", "label": "Tenant", "type": "query", "datasource": {"type": "prometheus", "uid": "$source"},
        "query": query, "definition": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    columns = 24 // WIDTH
    return {
        "id": index + 1,
        "title": panel.title,
        "type": "timeseries",
        "datasource": {"type": "prometheus", "uid": "$source"},
        "gridPos": {"x": index % columns * WIDTH, "y": index // columns * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"stacking": {"mode": "normal" if panel.stacked else "none"},
                           "fillOpacity": 30 if panel.stacked else 0},
            },
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }  # fmt: skip


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the file, or with --check say whether it is up to date."""
    check, files = "--check" in arguments, [each for each in arguments if each != "--check"]
    if len(files) != 1:
        sys.stderr.write("usage: python -m corepool.server.dashboard [--check] FILE\n")
        return 2
    path = Path(files[0])
    if not check:
        path.write_text(text(), encoding="utf-8")
        return 0
    if path.read_text(encoding="utf-8") == text():
        return 0
    sys.stderr.write(f"{path} is out of date: run python -m corepool.server.dashboard {path}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
