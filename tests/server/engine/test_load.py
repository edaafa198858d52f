"""Leases resized, expired and stopped by faults while requests are in flight: none lost, none wrong, others unharmed.

It must not know how cores are moved.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from corepool.compiler.model import ModelPackage
from corepool.errors import ConflictError, FaultError, HypervisorError, LeaseError, NotFoundError
from corepool.isa.codec import decode, encode
from corepool.isa.table import Opcode
from corepool.runtime.session import Session
from corepool.server.api import Inferred, InferRequest, LeaseRequest
from support.engine import Net, World, who

Make = Callable[..., World]


class Load(threading.Thread):
    """Keeps some requests of a tenant in flight, and keeps every answer."""

    def __init__(self, world: World, tenant: str, lease: str | None, depth: int = 4) -> None:
        super().__init__(daemon=True)
        self.world, self.tenant, self.lease, self.depth = world, tenant, lease, depth
        self.stopping = threading.Event()
        self.sent = 0
        self.answers: list[tuple[int, Inferred]] = []
        self.errors: list[BaseException] = []

    def run(self) -> None:
        flying: list[tuple[int, Future[Inferred]]] = []
        while not self.stopping.is_set() or flying:
            while len(flying) < self.depth and not self.stopping.is_set():
                seed = self.sent % 7
                request = InferRequest("net", self.world.net.image(seed), lease=self.lease)
                flying.append((seed, self.world.engine.submit(who(self.tenant), request)))
                self.sent += 1
            seed, first = flying.pop(0)
            try:
                self.answers.append((seed, first.result(300)))
            except BaseException as error:
                self.errors.append(error)

    def end(self) -> None:
        self.stopping.set()
        self.join(300)
        assert not self.errors, self.errors[:3]
        assert len(self.answers) == self.sent > 0, "requests were lost"
        for seed, answer in self.answers:
            assert self.world.net.right(answer, seed), f"a wrong answer on {answer.cores} cores"


def resize_under_load(world: World, times: int) -> None:
    engine, ann = world.engine, who("ann")
    world.load("ann", "ben")
    engine.create_lease(ann, LeaseRequest("moving", 4, 4))
    engine.create_lease(who("ben"), LeaseRequest("steady", 4, 4))
    loads = [Load(world, "ann", "moving"), Load(world, "ben", "steady", depth=2)]
    alone = world.infer("ben", lease="steady").cycles
    for load in loads:
        load.start()
    seen = set()
    for _ in range(times):
        for cores in (12, 4):
            before = len(loads[0].answers)
            assert len(engine.resize_lease(ann, "moving", cores, cores).cores) == cores
            deadline = time.monotonic() + 60
            while len(loads[0].answers) < before + 2 and time.monotonic() < deadline:
                time.sleep(0.002)
    for load in loads:
        load.end()
    seen = {answer.cores for _, answer in loads[0].answers}
    assert seen == {4, 12}
    assert {answer.cores for _, answer in loads[1].answers} == {4}
    assert {answer.cycles for _, answer in loads[1].answers} == {alone}, "a neighbour's resizing was felt"
    world.at_rest()


def test_resize_4_12_4_under_load(make: Make) -> None:
    resize_under_load(make("u200"), 12)


@pytest.mark.slow
def test_resize_4_12_4_under_load_200_times(make: Make) -> None:
    resize_under_load(make("u200"), 200)


def test_layers_change_hands_while_an_inference_runs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corepool.server.engine.card.SLICE_CYCLES", 100)
    settle = Session.settle

    def slowly(session: Session) -> None:
        time.sleep(0.001)  # so that there is time to stop so small a network
        settle(session)

    monkeypatch.setattr(Session, "settle", slowly)
    world = make()
    world.load("ann", "ben")
    engine, ann, ben = world.engine, who("ann"), who("ben")
    engine.create_lease(ann, LeaseRequest("long", 0, 4, switching="layer"))
    load = Load(world, "ann", "long")
    load.start()
    for number in range(40):
        engine.create_lease(ben, LeaseRequest("other", 2, 2))
        world.infer("ben", number % 7, lease="other")
        engine.release_lease(ben, "other")
        wide = time.monotonic() + 30
        while load.answers[-1:] and load.answers[-1][1].cores < 4 and time.monotonic() < wide:
            time.sleep(0.005)
        if world.card.suspensions >= 3 and number >= 5:
            break
    load.end()
    assert world.card.suspensions >= 3, "no inference was ever stopped between two layers"
    assert {answer.cores for _, answer in load.answers} == {2, 4}
    world.at_rest()


def test_default_leases_share_the_card_as_load_changes(make: Make) -> None:
    world = make("u200", linger_s=0.2)
    world.load("ann", "ben")
    assert world.infer("ann").cores == 16
    loads = [Load(world, tenant, None) for tenant in ("ann", "ben")]
    for load in loads:
        load.start()
    time.sleep(1.0)
    loads[0].stopping.set()
    loads[0].end()
    time.sleep(1.0)
    loads[1].end()
    assert {8} < {answer.cores for _, answer in loads[1].answers} >= {16}, "cores that nobody uses were not dealt anew"
    world.at_rest()


def bad_package(net: Net, folder: Path) -> Path:
    """The network with results that are saved far outside the window."""
    package = ModelPackage.open(net.path, net.config)
    code = np.array(package.code)
    for row in code:
        instruction = decode(row.tobytes())
        if instruction.opcode is Opcode.SAVE:
            row[:] = np.frombuffer(encode(Opcode.SAVE, **{**instruction.values, "address": 1 << 26}), np.uint64)
    path = folder / "bad.cpk"
    made = ModelPackage(**{
        name: getattr(package, name)
        for name in ("meta", "weights", "layers", "choice", "tilings", "ifps", "steps", "consumers", "tail")
    }, code=code)  # fmt: skip
    made.save(path, net.config)
    return path


@pytest.mark.parametrize("auto_repair", [True, False])
def test_a_fault_stops_its_own_lease_only(make: Make, tmp_path: Path, auto_repair: bool) -> None:
    world = make(auto_repair=auto_repair)
    engine, ann, ben = world.engine, who("ann"), who("ben")
    world.load("ben")
    engine.load_package(ann, "bad", "1", str(bad_package(world.net, tmp_path)))
    world.load("ann")
    engine.create_lease(ann, LeaseRequest("a", 2, 2))
    engine.create_lease(ben, LeaseRequest("b", 2, 2))
    load = Load(world, "ben", "b")
    load.start()
    jobs = [engine.submit(ann, InferRequest("bad", world.net.image(), lease="a")) for _ in range(3)]
    for job in jobs:
        with pytest.raises(FaultError, match="WINDOW"):
            job.result(300)
    assert engine.lease(ann, "a").state == "faulted"
    with pytest.raises(LeaseError, match="release it"):
        world.infer("ann", lease="a")
    with pytest.raises(LeaseError):
        engine.resize_lease(ann, "a", 1, 1)
    load.end()
    states = [state for state, _ in engine.cores()]
    world.at_rest()
    if not auto_repair:
        tainted = tuple(core for core, state in enumerate(states) if state == "tainted")
        assert len(tainted) == 2
        with pytest.raises(HypervisorError, match="not tainted"):
            engine.repair(tuple(core for core in range(4) if core not in tainted)[:1])
        engine.repair(tainted)
        world.at_rest()
    assert "tainted" not in [state for state, _ in engine.cores()]
    with pytest.raises(ConflictError):
        engine.create_lease(ann, LeaseRequest("a", 2, 2))
    engine.release_lease(ann, "a")
    engine.create_lease(ann, LeaseRequest("a", 2, 2))
    world.infer("ann", lease="a")


def test_the_default_lease_is_made_anew_after_a_fault(make: Make, tmp_path: Path) -> None:
    world = make()
    engine, ann = world.engine, who("ann")
    engine.load_package(ann, "bad", "1", str(bad_package(world.net, tmp_path)))
    world.load("ann")
    for _ in range(3):
        with pytest.raises(FaultError):
            engine.submit(ann, InferRequest("bad", world.net.image())).result(300)
        assert world.infer("ann").cores == 4
    world.at_rest()


def test_tainted_cores_stay_so_over_a_restart(make: Make, tmp_path: Path) -> None:
    world = make(auto_repair=False)
    engine, ann = world.engine, who("ann")
    engine.load_package(ann, "bad", "1", str(bad_package(world.net, tmp_path)))
    engine.create_lease(ann, LeaseRequest("a", 2, 2))
    with pytest.raises(FaultError):
        engine.submit(ann, InferRequest("bad", world.net.image(), lease="a")).result(300)
    assert engine.pilot.quiet()
    tainted = [core for core, (state, _) in enumerate(engine.cores()) if state == "tainted"]
    again = make(card=world.crash(), auto_repair=False)
    assert again.engine.pilot.quiet()
    assert [core for core, (state, _) in enumerate(again.engine.cores()) if state == "tainted"] == tainted
    again.engine.repair(tuple(tainted))
    assert again.engine.pilot.quiet()
    assert "tainted" not in [state for state, _ in again.engine.cores()]
    assert make(card=again.crash(), auto_repair=False).engine.cores()[tainted[0]][0] != "tainted"


@pytest.mark.parametrize("auto_repair", [True, False])
def test_a_lease_that_a_fault_stopped_stays_so_over_restarts(make: Make, tmp_path: Path, auto_repair: bool) -> None:
    """Until its owner releases it; the automatic lease comes back by itself."""
    world = make(auto_repair=auto_repair)
    engine, ann = world.engine, who("ann")
    engine.load_package(ann, "bad", "1", str(bad_package(world.net, tmp_path)))
    engine.create_lease(ann, LeaseRequest("a", 2, 2))
    engine.create_lease(ann, LeaseRequest("b", 1, 1))
    with pytest.raises(FaultError):
        engine.submit(ann, InferRequest("bad", world.net.image(), lease="a")).result(300)
    assert engine.pilot.quiet()
    for _ in range(2):
        world = make(card=world.crash(), auto_repair=auto_repair)
        engine = world.engine
        assert engine.pilot.quiet()
        stood = {each.name: each for each in engine.leases(ann)}
        assert (stood["a"].state, stood["a"].cores, stood["a"].position) == ("faulted", (), None)
        assert (stood["b"].state, len(stood["b"].cores)) == ("active", 1)
        with pytest.raises(LeaseError, match="stopped by a fault"):
            engine.submit(ann, InferRequest("bad", world.net.image(), lease="a")).result(60)
        with pytest.raises(ConflictError):
            engine.create_lease(ann, LeaseRequest("a", 2, 2))
    world.load("ann")
    engine.release_lease(ann, "a")
    assert engine.create_lease(ann, LeaseRequest("a", 1, 1)).state == "active"
    assert world.engine.submit(ann, InferRequest("net", world.net.image(), lease="a")).result(300).cores == 1
    world = make(card=world.crash(), auto_repair=auto_repair)
    assert world.engine.pilot.quiet()
    assert {each.state for each in world.engine.leases(ann)} == {"active"}


class Hands:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now, self._last = 0, time.monotonic_ns()

    def __call__(self) -> int:
        real = time.monotonic_ns()
        self.now, self._last = self.now + real - self._last, real
        return self.now

    def stop_for(self, seconds: float) -> None:
        """As if the process had been stopped for so long: nobody looked at the clock meanwhile."""
        self.now += int(seconds * 1e9)


def test_leases_end_unless_heartbeats_come(make: Make) -> None:
    world = make()
    engine, ann = world.engine, who("ann")
    engine.create_lease(ann, LeaseRequest("short", 1, 1, ttl_s=0.6))
    kept = engine.create_lease(ann, LeaseRequest("kept", 1, 1, ttl_s=0.9))
    assert 0 < kept.expires_in_s <= 0.9
    end = time.monotonic() + 2
    while time.monotonic() < end:
        engine.heartbeat(ann, "kept")
        time.sleep(0.1)
    assert [each.name for each in engine.leases(ann)] == ["kept"]
    with pytest.raises(NotFoundError):
        engine.heartbeat(ann, "short")
    end = time.monotonic() + 20
    while engine.leases(ann) and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.leases(ann) == []
    world.at_rest()


def test_a_stop_of_a_minute_ends_no_lease(make: Make) -> None:
    hands = Hands()
    world = make(source=hands)
    engine, ann = world.engine, who("ann")
    engine.create_lease(ann, LeaseRequest("one", 1, 1, ttl_s=5.0))
    hands.stop_for(60)
    time.sleep(0.6)
    assert engine.lease(ann, "one").expires_in_s > 2
    assert engine.heartbeat(ann, "one").expires_in_s > 4
    for _ in range(12):  # living time, as the server's own thread would see it
        hands.stop_for(0.9)
        engine.clock()
    end = time.monotonic() + 20
    while engine.leases(ann) and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.leases(ann) == []


def test_the_time_of_day_does_not_matter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    engine, ann = world.engine, who("ann")
    world.load("ann")
    engine.create_lease(ann, LeaseRequest("one", 2, 2, ttl_s=3.0))
    real = time.time
    for jump in (3600.0, -3600.0, 10 * 365.25 * 86400, -real()):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert engine.heartbeat(ann, "one").expires_in_s == pytest.approx(3, abs=0.5)
        world.infer("ann", lease="one")
