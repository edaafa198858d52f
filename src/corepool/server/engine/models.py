"""The tenants' model repository: packages loaded, listed and unloaded; durable when a call returns.

It must not know leases' rules, devices or protocols.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from corepool.errors import HypervisorError, NotFoundError, PackageError, RequestError, UnavailableError
from corepool.hypervisor import events as ev
from corepool.server.api import Identity, ModelInfo, ModelState, Role
from corepool.server.engine.catalog import Catalog, Loaded, Version, estimate, order_of
from corepool.server.engine.jobs import Jobs
from corepool.server.engine.leases import LeaseDesk
from corepool.server.engine.pilot import Pilot
from corepool.server.store import AuditRow, ModelRow, Store

DRAIN_S = 60.0  # an unload waits so long for inferences under way
NAME_BYTES = 256

_log = logging.getLogger(__name__)


class Repository:
    """``evict`` takes a model (tenant and key) off all cores. Methods may be called from any thread."""

    def __init__(
        self, catalog: Catalog, store: Store, pilot: Pilot, jobs: Jobs, desk: LeaseDesk,
        evict: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.catalog = catalog
        self._store = store
        self._pilot = pilot
        self._jobs = jobs
        self._desk = desk
        self._evict = evict

    def restore(self) -> None:
        """List what the store has; packages are opened when they are needed."""
        for row in self._store.models():
            path = self._store.packages.path(row.sha256)
            self.catalog.put(Version(row.tenant, row.name, row.version, row.sha256, path, window_bytes=_window(row)))

    def load(self, who: Identity, name: str, version: str, package_path: str) -> ModelInfo:
        """Raises PackageError, ConfigMismatchError, StorageFullError, RequestError. A version that is there already is
        replaced; inferences under way end with the one that they began with."""
        _check_names(name, version)
        tenant = who.tenant
        loaded = self.catalog.open(Path(package_path), name, version)
        with self._desk.locked(tenant):
            self._desk.know(tenant)
            model = estimate(loaded.key, loaded.package, loaded.config)
            if model.window_bytes > self._pilot.settings.bank_bytes:
                raise PackageError(
                    f"model {name!r} needs {model.window_bytes} bytes in each bank, this device's banks have "
                    f"{self._pilot.settings.bank_bytes}"
                )
            sha256 = self._store.packages.add(package_path)
            path = self._store.packages.path(sha256)
            before = self._known(tenant, name, version)
            if before is not None and before.sha256 == sha256 and before.state is ModelState.READY:
                return self.catalog.info(before)
            loaded = self.catalog.open(path, name, version)  # the file that stays
            made = Version(
                tenant, name, version, sha256, path, ModelState.READY, loaded=loaded, window_bytes=model.window_bytes
            )
            row = ModelRow(tenant, name, version, sha256, {"window_bytes": model.window_bytes})
            with self._store.transaction() as t:
                t.put_model(row)
                t.audit(AuditRow(who.key_id, tenant, "model.load", f"{name}/{version}"))
            self.introduce(tenant, loaded)
            self.catalog.put(made)
            if before is not None and before.loaded is not None:
                self._retire(tenant, before.loaded)
            return self.catalog.info(made)

    def introduce(self, tenant: str, loaded: Loaded) -> None:
        """Have the hypervisor know a model."""
        with self._desk.locked(tenant):
            if not loaded.known:
                self._desk.know(tenant)
                model = estimate(loaded.key, loaded.package, loaded.config)
                self._pilot.apply(lambda now: ev.LoadModel(now, tenant, model))
                loaded.known = True

    def unload(self, who: Identity, name: str, version: str | None = None) -> None:
        """Raises NotFoundError; UnavailableError if inferences under way do not end in time."""
        tenant = who.tenant
        with self._desk.locked(tenant):
            chosen = [v for v in self.catalog.all(tenant) if v.name == name and version in (None, v.version)]
            if not chosen:
                raise NotFoundError(f"there is no model {name!r}" + (f" of version {version!r}" if version else ""))
            states = [(each, each.state) for each in chosen]
            for each in chosen:
                each.state = ModelState.UNLOADING
            try:
                self._drain([each.loaded for each in chosen if each.loaded is not None])
                with self._store.transaction(freeing=True) as t:
                    for each in chosen:
                        t.delete_model(tenant, name, each.version)
                    t.audit(AuditRow(who.key_id, tenant, "model.unload", f"{name}/{version or '*'}"))
            except BaseException:
                for each, state in states:
                    each.state = state
                raise
            for each in chosen:
                each.state = ModelState.UNAVAILABLE
                self.catalog.forget(each)
                if each.loaded is not None:
                    self._retire(tenant, each.loaded)
                    each.loaded = None
            self.sweep()

    def sweep(self) -> None:
        """Delete package files that no model needs."""
        self._store.packages.sweep({each.sha256 for each in self.catalog.all()})

    def models(self, who: Identity) -> list[ModelInfo]:
        """All versions of all models of a tenant, or of everybody for an operator who acts for none."""
        tenant = None if who.role is Role.ADMIN and not who.tenant else who.tenant
        return [self.catalog.info(each) for each in self.catalog.all(tenant)]

    def window_bytes(self, tenant: str) -> int:
        """What the largest model of a tenant needs in a bank."""
        return max((each.window_bytes for each in self.catalog.all(tenant)), default=0) or 1

    def _known(self, tenant: str, name: str, version: str) -> Version | None:
        try:
            return self.catalog.find(tenant, name, version)
        except NotFoundError:
            return None

    def _drain(self, loaded: list[Loaded]) -> None:
        for each in loaded:
            if not self._jobs.wait(lambda key=each.key: not self._jobs.using(key), DRAIN_S):  # type: ignore[misc]
                raise UnavailableError("inferences are still under way: try again when they have ended")

    def _retire(self, tenant: str, loaded: Loaded) -> None:
        """Forget a package that nobody will ask for again, as soon as no inference uses it."""
        self._jobs.wait(lambda: not self._jobs.using(loaded.key), DRAIN_S)
        if loaded.known:
            try:
                self._pilot.apply(lambda now: ev.UnloadModel(now, tenant, loaded.key))
            except HypervisorError as error:
                _log.warning("model %s of %s stays in memory: %s", loaded.key, tenant, error)
                return
        self._evict(tenant, loaded.key)


def _window(row: ModelRow) -> int:
    value = row.extra.get("window_bytes", 0)
    return value if isinstance(value, int) else 0


def _check_names(name: str, version: str) -> None:
    if not 0 < len(name.encode("utf-8", "replace")) <= NAME_BYTES or any(ord(c) < 32 or c in "/\\:#" for c in name):
        raise RequestError(
            f"a model's name has 1 to {NAME_BYTES} bytes without control characters, '/', '\\', ':', '#'"
        )
    if order_of(version)[0] == 0 or len(version) > 18 or version != str(int(version)) or int(version) < 1:
        raise RequestError(f"a version is a whole number from 1 on, not {version!r}")
