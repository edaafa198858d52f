"""Small models, and a device that only remembers what it was told, for tests of the hypervisor.

It must not know policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.checks import violations
from corepool.hypervisor.model import Model
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.state import Hypervisor


def net(name: str = "net", one_ns: int = 16_000_000, window: int = 1000, weights: int = 600, layers: int = 4) -> Model:
    """A model that scales perfectly, with layers of equal length."""
    ends = tuple(1_000_000 * i // layers for i in range(1, layers + 1))
    return Model(name, tuple(one_ns // n for n in range(1, 17)), (6400,) * 16, window, weights, 100, ends)


@dataclass
class Ledger:
    """An independent witness: knows from actions and reports alone what each core was used for, and raises if it may
    not."""

    cleared: dict[int, bool] = field(default_factory=dict)
    user: dict[int, str] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    programmed: dict[str, ac.Program] = field(default_factory=dict)
    clears: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tasks: dict[str, tuple[str, ac.Action]] = field(default_factory=dict)  # lease: what the device is at
    accepted: set[int] = field(default_factory=set)
    ended: dict[int, ac.Outcome] = field(default_factory=dict)

    def tell(self, actions: list[ac.Action]) -> None:
        for action in actions:
            if isinstance(action, ac.Clear):
                self._new_epoch(action.epoch, action.cores)
                busy = {core for name in self.tasks for core in self.programmed[name].cores}
                assert not busy & set(action.cores), "a core is cleared while it is programmed or runs"
                self.clears[action.epoch] = action.cores
                self.cleared.update(dict.fromkeys(action.cores, False))
            elif isinstance(action, ac.Program):
                self._program(action)
            elif isinstance(action, ac.Start):
                assert self.programmed[action.lease].epoch == action.epoch
                assert action.lease not in self.tasks
                self.tasks[action.lease] = ("run", action)
            elif isinstance(action, ac.StopAfterLayer):
                assert self.tasks[action.lease][0] == "run"
            elif isinstance(action, ac.JobAccepted):
                assert action.job not in self.accepted
                self.accepted.add(action.job)
            elif isinstance(action, ac.JobEnded):
                assert action.job in self.accepted
                assert action.job not in self.ended
                self.ended[action.job] = action.outcome

    def _program(self, action: ac.Program) -> None:
        self._new_epoch(action.epoch, action.cores)
        assert action.lease not in self.tasks
        for core in action.cores:
            if self.user.get(core) != action.lease or not self._kept(core, action.lease):
                assert self.cleared.get(core), f"core {core} goes to {action.lease} without having been cleared"
            others = [name for name in self.tasks if name != action.lease and core in self.programmed[name].cores]
            assert not others, f"core {core} runs for {others} and is given to {action.lease}"
            self.user[core], self.cleared[core] = action.lease, False
        self.programmed[action.lease] = action
        self.tasks[action.lease] = ("program", action)

    def _kept(self, core: int, lease: str) -> bool:
        return lease in self.programmed and core in self.programmed[lease].cores

    def _new_epoch(self, epoch: int, cores: tuple[int, ...]) -> None:
        for core in cores:
            assert epoch > self.seen.get(core, 0), f"epoch {epoch} is not younger than {self.seen[core]} of core {core}"
            self.seen[core] = epoch

    def report_cleared(self, epoch: int) -> None:
        self.cleared.update(dict.fromkeys(self.clears.pop(epoch), True))


@dataclass
class World:
    """A hypervisor, its ledger and its log; every step is checked."""

    settings: Settings
    hypervisor: Hypervisor = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    log: list[ev.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hypervisor = Hypervisor(self.settings)

    @property
    def now(self) -> int:
        return self.hypervisor.book.now

    def do(self, event: ev.Event) -> list[ac.Action]:
        self.log.append(event)
        actions = self.hypervisor.handle(event)
        self.ledger.tell(actions)
        broken = violations(self.hypervisor.book, self.settings)
        assert not broken, (event, broken)
        return actions

    def tenant(self, name: str, *models: Model, quota: int = 16, priority: int = 0) -> None:
        self.do(ev.AddTenant(self.now, name, quota, priority))
        for model in models or (net(),):
            self.do(ev.LoadModel(self.now, name, model))

    def lease(self, tenant: str, name: str, minimum: int, maximum: int, **more: object) -> list[ac.Action]:
        return self.do(ev.RequestLease(self.now, tenant, name, minimum, maximum, 1000, **more))  # type: ignore[arg-type]

    def finish(self, lease: str) -> list[ac.Action]:
        """The device ends what it does for a lease."""
        what, action = self.ledger.tasks.pop(lease)
        if what == "program":
            return self.do(ev.Programmed(self.now, lease, action.epoch))  # type: ignore[attr-defined]
        return self.do(ev.JobDone(self.now, lease, action.epoch, action.job))  # type: ignore[attr-defined]

    def clear_all(self) -> list[ac.Action]:
        """The device ends all clearing."""
        actions = []
        while self.ledger.clears:
            epoch = min(self.ledger.clears)
            self.ledger.report_cleared(epoch)
            actions += self.do(ev.Cleared(self.now, epoch))
        return actions

    def drain(self, limit: int = 10_000) -> None:
        """The device ends everything that it is asked to do, until it is asked for nothing."""
        for _ in range(limit):
            if self.ledger.clears:
                self.clear_all()
            elif self.ledger.tasks:
                self.finish(min(self.ledger.tasks))
            else:
                return
        raise AssertionError("the hypervisor never comes to rest")

    def cores(self, lease: str) -> tuple[int, ...]:
        return tuple(sorted(self.hypervisor.book.leases[lease].own))


@pytest.fixture
def world() -> World:
    return World(Settings())
