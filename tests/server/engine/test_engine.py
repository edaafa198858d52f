"""The engine as its users see it: inferences, models, leases, queues, limits, deadlines; answers are the numerics'.

It must not know threads, journals or the hypervisor.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import corepool
from corepool.errors import (
    ConflictError,
    DeadlineExceededError,
    InputError,
    LeaseError,
    NotFoundError,
    PackageError,
    QuotaError,
    RequestError,
    TooManyRequestsError,
    UnavailableError,
)
from corepool.server.api import InferRequest, LeaseRequest, ModelState
from corepool.server.store import TenantRow
from support.engine import OPERATOR, World, who

Make = Callable[..., World]


def test_first_inference_makes_the_default_lease(make: Make) -> None:
    world = make()
    world.load("ann")
    answer = world.infer("ann")
    assert (answer.model, answer.version, answer.lease, answer.cores) == ("net", "1", "default", 4)
    assert answer.cycles > 0
    assert answer.device_us == pytest.approx(answer.cycles * 1e6 / world.net.config.clock_hz)
    times = answer.timings
    assert min(times.queue_ns, times.relink_ns, times.upload_ns, times.compute_ns, times.download_ns) > 0
    assert world.infer("ann", 1).timings.relink_ns == 0, "the model was on its cores already"
    (lease,) = world.engine.leases(who("ann"))
    assert (lease.name, lease.state, lease.maximum, len(lease.cores), lease.model) == ("default", "active", 4, 4, "net")
    assert world.engine.leases(who("ben")) == []
    assert [each.tenant for each in world.engine.leases(OPERATOR)] == ["ann"]
    world.at_rest()


def test_model_is_described_and_unloaded(make: Make) -> None:
    world = make()
    world.load("ann")
    world.load("ann", version="3")
    info = world.engine.model(who("ann"), "net")
    assert (info.version, info.versions, info.state) == ("3", ("1", "3"), ModelState.READY)
    assert [(each.name, each.datatype, each.shape) for each in info.inputs] == [("image", "FP32", (1, 3, 12, 10))]
    assert [(each.name, each.datatype, each.shape) for each in info.outputs] == [("scores", "FP32", (1, 5, 12, 10))]
    assert world.infer("ann").version == "3"
    assert world.infer("ann", version="1").version == "1"
    world.engine.unload(who("ann"), "net", "3")
    assert world.infer("ann").version == "1"
    world.engine.unload(who("ann"), "net")
    assert world.engine.models(who("ann")) == []
    assert list(world.store.packages.folder.glob("*.cpk")) == []
    assert all(placed is None for placed in (world.card.placed("ann/default"),)), "its memory was not given back"
    with pytest.raises(NotFoundError):
        world.infer("ann")
    world.load("ann")
    world.infer("ann")


def test_a_version_is_replaced(make: Make) -> None:
    world = make("u200")
    world.load("ann")
    first = world.infer("ann")
    world.load("ann")
    assert world.infer("ann").cycles == first.cycles


def test_others_models_and_leases_look_absent(make: Make) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    engine, ben = world.engine, who("ben")
    absent = {}
    for name in ("net", "nothing"):
        with pytest.raises(NotFoundError) as caught:
            engine.submit(ben, InferRequest(name, world.net.image()))
        absent[name] = str(caught.value).replace(name, "X")
    assert len(set(absent.values())) == 1
    for name in ("default", "nothing"):
        for call in (engine.lease, engine.heartbeat, engine.release_lease):
            with pytest.raises(NotFoundError):
                call(ben, name)
        with pytest.raises(NotFoundError):
            engine.resize_lease(ben, name, 1, 1)
    with pytest.raises(NotFoundError):
        engine.lease(ben, "default", "ann")
    assert engine.lease(OPERATOR, "default", "ann").tenant == "ann"
    with pytest.raises(NotFoundError):
        engine.unload(ben, "net")
    world.load("ben")
    with pytest.raises(NotFoundError, match="no lease 'absent'"):
        world.infer("ben", lease="absent")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "'image' is missing"),
        ({"image": np.zeros((1, 3, 12, 11), np.float32)}, r"have the shape \[1, 3, 12, 10\], not \[1, 3, 12, 11\]"),
        ({"image": np.zeros((1, 3, 12, 10), np.float64)}, "not float64"),
        ({"image": np.zeros((1, 3, 12, 10), np.float32), "more": np.zeros(1)}, "no input 'more'"),
        ({"image": np.full((1, 3, 12, 10), np.nan, np.float32)}, "NaN"),
    ],
)
def test_unfit_inputs_are_refused_and_nothing_else_happens(make: Make, inputs: dict, says: str) -> None:
    world = make()
    world.load("ann")
    with pytest.raises(InputError, match=says):
        world.engine.submit(who("ann"), InferRequest("net", inputs)).result(300)
    assert world.infer("ann").cores == 4


def test_outputs_are_chosen_by_name(make: Make) -> None:
    world = make()
    world.load("ann")
    assert set(world.infer("ann", outputs=("scores",)).outputs) == {"scores"}
    with pytest.raises(InputError, match="no output 'other'"):
        world.infer("ann", outputs=("other",))


def test_bad_names_and_packages_are_refused(make: Make, tmp_path) -> None:
    world = make()
    broken = tmp_path / "broken.cpk"
    broken.write_bytes(world.net.path.read_bytes()[:-9])
    for path in (broken, tmp_path / "absent.cpk"):
        with pytest.raises(PackageError):
            world.engine.load_package(who("ann"), "net", "1", str(path))
    for name, version in (("", "1"), ("a/b", "1"), ("net", "0"), ("net", "01"), ("net", "x"), ("n\0", "1")):
        with pytest.raises(RequestError):
            world.engine.load_package(who("ann"), name, version, str(world.net.path))
    assert world.engine.models(who("ann")) == []
    assert world.store.models() == []


def test_leases_queue_with_position_and_predicted_wait(make: Make) -> None:
    world = make()
    engine = world.engine
    first = engine.create_lease(who("ann"), LeaseRequest("big", 4, 4, "public", ttl_s=1000.0))
    assert (first.state, len(first.cores), first.position, first.predicted_wait_s) == ("active", 4, None, None)
    waiting = [engine.create_lease(who("ben"), LeaseRequest(f"q{i}", 2, 2, "public")) for i in range(2)]
    assert [each.state for each in waiting] == ["queued", "queued"]
    assert [each.position for each in waiting] == [0, 1]
    assert all(each.predicted_wait_s == pytest.approx(1000, abs=5) for each in waiting)
    engine.release_lease(who("ann"), "big")
    assert world.engine.pilot.quiet()
    for i in range(2):
        after = engine.lease(who("ben"), f"q{i}")
        assert (after.state, len(after.cores), after.position) == ("active", 2, None)
    world.at_rest()


def test_private_lease_keeps_its_minimum_without_work(make: Make) -> None:
    world = make()
    world.load("ben")
    lease = world.engine.create_lease(who("ann"), LeaseRequest("mine", 2, 4))
    assert len(lease.cores) == 2
    assert world.infer("ben").cores == 2, "the other two are promised"
    assert len(world.engine.lease(who("ann"), "mine").cores) == 2


def test_sums_of_quotas_hold_and_default_makes_room(make: Make) -> None:
    world = make()
    world.load("ann")
    engine, ann = world.engine, who("ann")
    assert world.infer("ann").cores == 4
    lease = engine.create_lease(ann, LeaseRequest("fixed", 3, 3))
    assert len(lease.cores) == 3
    assert world.infer("ann", lease="fixed").cores == 3
    assert world.infer("ann").cores == 1
    with pytest.raises(QuotaError):
        engine.create_lease(ann, LeaseRequest("more", 2, 2))
    with pytest.raises(QuotaError):
        engine.resize_lease(ann, "fixed", 5, 5) if world.net.config.cores > 4 else engine.create_lease(
            ann, LeaseRequest("more", 2, 4)
        )
    with pytest.raises(ConflictError):
        engine.create_lease(ann, LeaseRequest("fixed", 1, 1))
    world.at_rest()


def test_quotas_and_limits_change_while_it_runs(make: Make) -> None:
    world = make(in_flight=1)
    world.load("ann")
    engine, ann = world.engine, who("ann")
    engine.create_lease(ann, LeaseRequest("fixed", 2, 2))
    assert world.infer("ann").cores == 2
    engine.tenant_changed("ann", TenantRow("ann", 3, in_flight=5))
    assert world.infer("ann").cores == 1, "the automatic lease did not shrink"
    gate = Gate(world)
    kept = [gate.submit("ann") for _ in range(5)]
    gate.open()
    wait(kept, 300)
    with pytest.raises(QuotaError):
        engine.check_quota("ann", 1)
    engine.tenant_changed("ann", TenantRow("ann", 1))
    assert len(engine.lease(ann, "fixed").cores) == 2, "a lease lost its cores"
    with pytest.raises(QuotaError):
        engine.create_lease(ann, LeaseRequest("more", 1, 1))
    engine.release_lease(ann, "fixed")
    assert len(engine.create_lease(ann, LeaseRequest("one", 1, 1)).cores) == 1
    with pytest.raises(QuotaError):
        engine.create_lease(ann, LeaseRequest("two", 1, 1))
    world.at_rest()


def test_idle_automatic_leases_are_released(make: Make) -> None:
    world = make(default_idle_s=0.3, linger_s=0.1)
    world.load("ann")
    world.engine.create_lease(who("ann"), LeaseRequest("kept", 1, 1))
    world.infer("ann")
    end = time.monotonic() + 30
    while len(world.engine.leases(OPERATOR)) > 1 and time.monotonic() < end:
        time.sleep(0.02)
    assert [each.name for each in world.engine.leases(OPERATOR)] == ["kept"]
    assert world.infer("ann").lease == "default"
    assert world.engine.release_automatic("ann")
    world.at_rest()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (LeaseRequest("", 1, 1), RequestError),
        (LeaseRequest("a/b", 1, 1), RequestError),
        (LeaseRequest("a", 3, 2), LeaseError),
        (LeaseRequest("a", -1, 2), LeaseError),
        (LeaseRequest("a", 1, 17), LeaseError),
        (LeaseRequest("a", 1, 2, "public"), LeaseError),
        (LeaseRequest("a", 1, 1, "shared"), RequestError),
        (LeaseRequest("a", 1, 1, switching="row"), RequestError),
        (LeaseRequest("a", 1, 1, ttl_s=0.0), RequestError),
        (LeaseRequest("a", 1, 1, ttl_s=float("nan")), RequestError),
        (LeaseRequest("a", 1, 1, ttl_s=float("inf")), RequestError),
    ],
)
def test_senseless_leases_are_refused(make: Make, request_: LeaseRequest, error: type[Exception]) -> None:
    world = make()
    with pytest.raises(error):
        world.engine.create_lease(who("ann"), request_)
    assert world.engine.leases(OPERATOR) == []
    assert world.store.leases() == []
    assert len(world.engine.create_lease(who("ann"), LeaseRequest("a", 4, 4)).cores) == 4


def test_a_repeated_call_gets_the_first_answer(make: Make) -> None:
    world = make()
    engine, ann = world.engine, who("ann")
    first = engine.create_lease(ann, LeaseRequest("one", 2, 2), "key-1")
    assert engine.create_lease(ann, LeaseRequest("one", 2, 2), "key-1") == first
    with pytest.raises(ConflictError):
        engine.create_lease(ann, LeaseRequest("two", 2, 2), "key-1")
    resized = engine.resize_lease(ann, "one", 1, 1, "key-2")
    engine.resize_lease(ann, "one", 2, 2)
    assert engine.resize_lease(ann, "one", 1, 1, "key-2") == resized
    assert engine.lease(ann, "one").maximum == 2, "the repeated call changed something"
    engine.release_lease(ann, "one", "key-3")
    engine.release_lease(ann, "one", "key-3")
    with pytest.raises(NotFoundError):
        engine.release_lease(ann, "one", "key-4")
    other = engine.create_lease(who("ben"), LeaseRequest("one", 2, 2), "key-1")
    assert other.tenant == "ben", "keys are each tenant's own"


def test_queue_is_bounded_by_tenant(make: Make) -> None:
    world = make(in_flight=3)
    world.load("ann", "ben")
    gate = Gate(world)
    kept = [gate.submit("ann") for _ in range(3)]
    with pytest.raises(TooManyRequestsError) as caught:
        gate.submit("ann")
    assert 0 < caught.value.retry_after_s <= 60
    other = gate.submit("ben")
    gate.open()
    for each in (*kept, other):
        assert world.net.right(each.result(300))
    world.infer("ann")


def test_waiting_is_cancelled_and_deadlines_pass(make: Make) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    gate = Gate(world)
    running = gate.submit("ann")
    gate.reached.wait(30)
    dropped, late, last = gate.submit("ann"), gate.submit("ann", timeout_us=20_000), gate.submit("ann")
    assert dropped.cancel()
    with pytest.raises(DeadlineExceededError):
        late.result(30)
    assert not running.cancel(), "what runs goes on"
    gate.open()
    assert world.net.right(running.result(300))
    assert world.net.right(last.result(300))
    assert gate.ran == 2


def test_a_deadline_passes_while_the_inference_runs(make: Make) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    gate = Gate(world)
    late = gate.submit("ann", timeout_us=50_000)
    with pytest.raises(DeadlineExceededError):
        late.result(30)
    gate.open()
    world.infer("ann", 2)


def test_priorities_go_first(make: Make) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    gate = Gate(world)
    order: list[str] = []
    jobs = {"running": gate.submit("ann")}
    gate.reached.wait(30)
    for name, level in (("default", 0), ("late", 200), ("low", 9), ("high", 1)):
        jobs[name] = gate.submit("ann", priority=level)
    for name, job in jobs.items():
        job.add_done_callback(lambda _, name=name: order.append(name))
    gate.open()
    wait(jobs.values(), 300)
    assert order == ["running", "high", "low", "default", "late"]


def test_draining_ends_what_is_under_way(make: Make) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    gate = Gate(world)
    kept = [gate.submit("ann") for _ in range(3)]
    stopper = threading.Thread(target=world.close)
    stopper.start()
    time.sleep(0.1)
    with pytest.raises(UnavailableError):
        gate.submit("ann")
    assert not world.engine.ready()
    gate.open()
    stopper.join(60)
    assert all(world.net.right(each.result(0)) for each in kept)


def test_an_idle_engine_has_not_loaded_what_only_devices_need() -> None:
    text = (
        "import sys, corepool.server.engine.engine, corepool.server.engine.devices\n"
        "print({'numba', 'llvmlite', 'onnx', 'onnxruntime', 'amaranth'} & set(sys.modules))"
    )
    env = {"PYTHONPATH": str(Path(corepool.__file__).parents[1]), "PATH": "", "HOME": "/nonexistent"}
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, env=env, timeout=120)
    assert run.stdout.strip() == "set()"


class Gate:
    """Holds runs on the card back until it is opened."""

    def __init__(self, world: World) -> None:
        self.world, self.ran = world, 0
        self.reached, self._gate = threading.Event(), threading.Event()
        run = world.card.run

        def gated(*arguments, **more):
            self.reached.set()
            self._gate.wait(300)
            self.ran += 1
            return run(*arguments, **more)

        world.card.run = gated

    def submit(self, tenant: str, **request):
        return self.world.engine.submit(who(tenant), InferRequest("net", self.world.net.image(), **request))

    def open(self) -> None:
        self._gate.set()


def test_an_operator_sees_all_or_the_tenant_for_whom_he_acts(make: Make) -> None:
    world = make()
    for tenant in ("ann", "ben"):
        world.load(tenant)
        world.infer(tenant)
    engine, acting = world.engine, replace(OPERATOR, tenant="ben")
    assert [(each.tenant, each.name) for each in engine.models(OPERATOR)] == [("ann", "net"), ("ben", "net")]
    assert [each.tenant for each in engine.leases(OPERATOR)] == ["ann", "ben"]
    assert [each.tenant for each in engine.models(acting)] == ["ben"]
    assert [each.tenant for each in engine.leases(acting)] == ["ben"]


def test_the_automatic_lease_takes_what_becomes_free_of_the_quota(make: Make) -> None:
    world = make()
    world.load("ann")
    world.engine.tenant_changed("ann", TenantRow("ann", 2))
    assert world.infer("ann").cores == 2

    def later(cores: int) -> None:
        for _ in range(100):
            if world.infer("ann").cores == cores:
                return
            time.sleep(0.02)
        raise AssertionError(world.engine.lease(who("ann"), "default"))

    world.engine.tenant_changed("ann", TenantRow("ann", 4))
    later(4)
    world.engine.create_lease(who("ann"), LeaseRequest("work", 3, 3))
    later(1)
    world.engine.resize_lease(who("ann"), "work", 1, 1)
    later(3)
    world.engine.release_lease(who("ann"), "work")
    later(4)
    assert world.engine.lease(who("ann"), "default").maximum == 4
    world.at_rest()
