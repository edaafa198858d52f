"""The assembled server: what its parts agree on, with the true engine in place."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corepool.config import preset
from corepool.errors import ConflictError, NotFoundError
from corepool.server.api import Identity, InferRequest, LeaseRequest, Role
from corepool.server.app import Server, assembled
from corepool.server.logging import set_up
from corepool.server.settings import Settings
from corepool.server.store import TenantRow
from corepool.server.tenants import SYSTEM
from support.toy_engine import toy_package

ADA = Identity(Role.TENANT, "ada", "key")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    settings = Settings(config="tiny", state_dir=tmp_path / "state")
    with assembled(settings, set_up("error", "console")) as made:
        made.tenants.add(SYSTEM, TenantRow("ada", quota_cores=4))
        toy_package(preset("tiny")).save(tmp_path / "toy.cpk", preset("tiny"))
        made.engine.load_package(ADA, "toy", "1", str(tmp_path / "toy.cpk"))
        yield made


def infer(server: Server) -> int:
    """Runs the model once on the automatic lease; the cores that it had."""
    info = server.engine.model(ADA, "toy")
    inputs = {each.name: np.zeros(each.shape, each.datatype.lower()) for each in info.inputs}
    return server.engine.submit(ADA, InferRequest("toy", inputs)).result(60).cores


def test_a_lease_that_nobody_asked_for_is_in_nobodys_way(server: Server) -> None:
    assert infer(server) == 4
    server.tenants.change(SYSTEM, "ada", quota_cores=2)
    assert infer(server) <= 2
    server.engine.unload(ADA, "toy")
    server.tenants.remove(SYSTEM, "ada")
    with pytest.raises(NotFoundError):
        server.tenants.get(SYSTEM, "ada")
    assert server.engine.store.leases() == []


def test_a_lease_that_was_asked_for_is_kept(server: Server) -> None:
    server.engine.create_lease(ADA, LeaseRequest("mine", 3, 3))
    with pytest.raises(ConflictError, match="3 cores"):
        server.tenants.change(SYSTEM, "ada", quota_cores=2)
    server.engine.unload(ADA, "toy")
    with pytest.raises(ConflictError):
        server.tenants.remove(SYSTEM, "ada")
    assert server.tenants.get(SYSTEM, "ada").quota_cores == 4
    assert [each.name for each in server.engine.leases(ADA)] == ["mine"]
