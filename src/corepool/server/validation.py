"""Has the card's isolation attacked: on the device that serves where all leases share one, in two cores leased for it.

It must not know transports, nor what the attacks are.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

from corepool.device.base import Device
from corepool.errors import CorepoolError, UnavailableError
from corepool.server.api import LeaseRequest, Role
from corepool.server.attacks import run_attacks
from corepool.server.engine.engine import Engine
from corepool.server.store import TenantRow
from corepool.server.tenants import SYSTEM, Tenants

LEASE = "cores"


class Validation:
    """``open_device`` opens one like those that each lease has, where they share none."""

    def __init__(self, engine: Engine, tenants: Tenants, open_device: Callable[[], Device]) -> None:
        self._engine = engine
        self._tenants = tenants
        self._open_device = open_device
        self._busy = threading.Lock()

    def run(self) -> dict[str, Any]:
        """Where the attacks took place, and what became of each. Raises UnavailableError if a validation is under way,
        or if no two cores can be had."""
        if not self._busy.acquire(blocking=False):
            raise UnavailableError("a validation is under way: wait for it to end")
        try:
            if self._engine.card.separate:
                return self._on_one_more()
            return self._on_the_card()
        finally:
            self._busy.release()

    def _on_one_more(self) -> dict[str, Any]:
        device = self._open_device()
        verdicts = run_attacks(lambda: nullcontext(device), self._engine.config)
        where = "a device opened for this: the simulator gives each lease a device of its own, so leases share none"
        return {"device": where, "attacks": [asdict(each) for each in verdicts]}

    def _on_the_card(self) -> dict[str, Any]:
        card = self._engine.card
        with self._two_cores() as (victim, attacker):
            verdicts = run_attacks(card.lent, self._engine.config, victim, attacker)
        where = f"the device that serves, in its cores {victim} and {attacker}, leased for this"
        return {"device": where, "attacks": [asdict(each) for each in verdicts]}

    @contextmanager
    def _two_cores(self) -> Any:
        """Two cores that nobody else has until this ends, leased as any tenant's are."""
        name = f"validate-{secrets.token_hex(4)}-cores"
        who = replace(SYSTEM, role=Role.ADMIN, tenant=name)
        self._tenants.add(SYSTEM, TenantRow(name, quota_cores=2))
        try:
            lease = self._engine.create_lease(who, LeaseRequest(LEASE, 2, 2, sharing="public"))
            try:
                if lease.state != "active" or len(lease.cores) != 2:
                    raise UnavailableError("no two cores can be had now: validate when fewer leases are held")
                yield lease.cores
            finally:
                self._engine.release_lease(who, LEASE)
        finally:
            with suppress(CorepoolError):
                self._tenants.remove(SYSTEM, name)
