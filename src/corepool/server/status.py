"""What the card does at the moment, for people who look at it: cores by tenant, banks, queues, re-deals.

It must not know how it is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from corepool.server.api import Identity, Role
from corepool.server.meters import SECOND
from corepool.server.metrics import Watched
from corepool.server.traces import Traces
from corepool.server.validation import Validation

MOST = 1000  # tenants and leases that are told
_OPERATOR = Identity(Role.ADMIN, "", "status")


class Operator:
    """What operators can ask of the server beyond tenants and leases."""

    def __init__(self, watched: Watched, traces: Traces, validation: Validation) -> None:
        self._watched = watched
        self._traces = traces
        self._validation = validation

    def trace(self, who: Identity, ident: str) -> dict[str, Any]:
        """What became of a request, by its id, for Perfetto. Raises NotFoundError."""
        return self._traces.get(who, ident)

    def validate(self) -> dict[str, Any]:
        """Attacks on the isolation of leases, where they took place, and what became of each. Raises UnavailableError
        if that runs already or no two cores can be had."""
        return self._validation.run()

    def status(self) -> dict[str, Any]:
        """Everything at once; times in seconds, ``ago_s`` before now."""
        watched = self._watched
        card, now = watched.card, watched.card.clock()
        busy = card.busy()
        cores = []
        for core, (state, owner) in enumerate(watched.engine.cores()):
            tenant, _, lease = owner.partition("/")
            cores.append({"core": core, "bank": core // card.config.cores_per_bank, "state": state, "tenant": tenant,
                          "lease": lease, "busy_ratio": busy[core][0]})  # fmt: skip
        with card.lock:
            totals = list(zip(card.read_bytes, card.written_bytes, strict=True))
            redeals = list(card.redeals)
        pending: Counter[str] = Counter()
        done: Counter[str] = Counter()
        with watched.inferences.lock:
            for (tenant, _, _), row in watched.inferences.rows.items():
                pending[tenant] += row.pending
                done[tenant] += row.outcomes["success"]
        tenants = [
            {"tenant": row.name, "quota_cores": row.quota_cores, "pending": pending[row.name],
             "succeeded": done[row.name], "cores": sum(each["tenant"] == row.name for each in cores)}
            for row in watched.tenants()[:MOST]
        ]  # fmt: skip
        return {
            "config": card.config.name,
            "ready": watched.engine.ready(),
            "kernels": watched.engine.warming.state.value,
            "cores": cores,
            "banks": [{"bank": n, "read_bytes": r, "written_bytes": w} for n, (r, w) in enumerate(totals)],
            "tenants": tenants,
            "leases": [asdict(each) for each in watched.engine.leases(_OPERATOR)[:MOST]],
            "redeals": [
                {"ago_s": (now - at) / SECOND, "lease": lease, "before": before, "after": after, "seconds": seconds}
                for at, lease, before, after, seconds in reversed(redeals)
            ],
        }
