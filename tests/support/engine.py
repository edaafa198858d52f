"""Worlds for tests of the server's engine: store, card and engine in one folder, tenants and a small network.

It must not know transports. What a test expects of the network comes from the numerics, not from a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.config import HardwareConfig, preset
from corepool.server.api import Identity, Inferred, InferRequest, Role
from corepool.server.engine.card import Card
from corepool.server.engine.devices import open_card
from corepool.server.engine.engine import Engine, EngineOptions
from corepool.server.engine.journal import lease_id
from corepool.server.store import Store, TenantRow
from support.small import small_graph, small_image

OPERATOR = Identity(Role.ADMIN, "", "operator")


@dataclass
class Net:
    """The network as a package on disk, and what it answers."""

    config: HardwareConfig
    path: Path
    answers: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def compiled(cls, folder: Path, name: str) -> Net:
        config = preset(name)
        path = folder / f"{name}.cpk"
        compile_graph(small_graph(), config).package.save(path, config)
        return cls(config, path)

    def image(self, seed: int = 0) -> dict[str, np.ndarray]:
        return {"image": small_image(seed)}

    def expected(self, seed: int = 0) -> np.ndarray:
        if seed not in self.answers:
            made = small_graph()
            self.answers[seed] = reference.outputs(made, reference.execute(made, self.image(seed)))["scores"]
        return self.answers[seed]

    def right(self, answer: Inferred, seed: int = 0) -> bool:
        return np.array_equal(answer.outputs["scores"], self.expected(seed))


def who(tenant: str) -> Identity:
    return Identity(Role.TENANT, tenant, f"key-{tenant}")


class World:
    """Begins with tenants ann and ben, whose quotas are all cores each, and starts an engine that checks invariants at
    every event. A ``card`` from an earlier world is one that outlived its engine."""

    def __init__(
        self,
        folder: Path,
        net: Net,
        *,
        card: Card | None = None,
        tenants: tuple[str, ...] = ("ann", "ben"),
        start: bool = True,
        kind: str = "simulator",
        **options: Any,
    ) -> None:
        self.folder, self.net = folder, net
        self.store = Store(None, folder)
        self.card = card or open_card(kind, net.config)
        for name in tenants:
            if self.store.tenant(name) is None:
                self.store.put_tenant(TenantRow(name, net.config.cores))
        self.engine = Engine(net.config, self.card, self.store, EngineOptions(checked=True, **options))
        self._open = True
        if start:
            self.engine.start()

    def load(self, *tenants: str, name: str = "net", version: str = "1") -> None:
        for tenant in tenants or ("ann",):
            self.engine.load_package(who(tenant), name, version, str(self.net.path))

    def infer(self, tenant: str = "ann", seed: int = 0, timeout: float = 300, **request: Any) -> Inferred:
        """One inference, whose answer is checked against the numerics."""
        answer = self.engine.submit(who(tenant), InferRequest("net", self.net.image(seed), **request)).result(timeout)
        assert self.net.right(answer, seed), f"wrong answer on lease {answer.lease} with {answer.cores} cores"
        return answer

    def crash(self) -> Card:
        """End as a killed process would, but for the card. Returns the card."""
        if self._open:
            self._open = False
            self.engine.crash()
            self.store.close()
        return self.card

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                self.engine.stop(10)
            finally:
                self.store.close()

    def disagreements(self) -> list[str]:
        """What card and store say differently of any core, when all is quiet; nothing of the engine is asked."""
        found: list[str] = []
        rows = self.store.leases()
        owners: dict[int, str] = {}
        for row in rows:
            name = lease_id(row.tenant, row.name)
            for core in row.cores:
                if core in owners:
                    found.append(f"core {core} is leased to {owners[core]} and {name}")
                owners[core] = name
        programmed = {core: lease_id(row.tenant, row.name) for row in rows for core in row.extra.get("programmed", ())}
        for core, owner in enumerate(self.card.table()):
            if owner.lease != programmed.get(core):
                found.append(f"core {core}: the card says {owner}, the store {programmed.get(core)}")
            if owner.epoch > self.store.epoch():
                found.append(f"core {core} has seen epoch {owner.epoch}, the store only {self.store.epoch()}")
        found += [f"open: {intent}" for intent in self.store.open_intents()]
        return found

    def at_rest(self) -> None:
        """Wait until all is quiet; then card and store must agree."""
        assert self.engine.pilot.quiet(30)
        found = self.disagreements()
        assert not found, found


Make = Callable[..., World]
