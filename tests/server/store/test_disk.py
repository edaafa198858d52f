"""A disk that fails or is full: an error in one line, the state before or after, and releasing still works.

It must not know how SQLite lays out its files.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from corepool.errors import CorepoolError, StorageFullError, StoreError
from corepool.server.store import AuditRow, LeaseRow, Store, TenantRow, guard
from support import store_work
from support.disk import FULL, IOERR, OK, Disk, fail_nth

OPS = store_work.work(seed=8, count=12)
STATES = store_work.states(OPS)


def small_checkpoints(store: Store) -> Store:
    store._database.handle.execute("PRAGMA wal_autocheckpoint = 12")
    return store


def require_one_line(error: CorepoolError) -> None:
    assert "\n" not in str(error)


def require_fault(failed: bool, number: int, error: CorepoolError) -> None:
    assert failed, f"access {number} did not fail yet, but: {error}"


def work_on(folder: Path) -> tuple[int, int]:
    """Open and work until something fails. Returns how many operations were acknowledged and how many were tried."""
    done = 0
    with Store(None, folder, ballast_bytes=0) as store:
        small_checkpoints(store)
        assert store_work.look(store, STATES[-1]) == STATES[0]
        for op in OPS:
            try:
                store_work.apply(store, op)
            except (StoreError, StorageFullError) as error:
                require_one_line(error)
                seen = look_if_possible(store)
                assert seen is None or seen == STATES[done]
                return done, done + 1
            done += 1
    return done, done


def look_if_possible(store: Store) -> store_work.State | None:
    try:
        return store_work.look(store, STATES[-1])
    except (StoreError, StorageFullError):
        return None


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "state"
    Store(None, folder, ballast_bytes=0).close()
    return folder


def fail_from_one_on(fresh: Path | None, tmp_path: Path, step: int, code: int, lasting: bool) -> int:
    """Let the n-th access fail, for n = 1 and so on until no access is left to fail. Returns how many were."""
    number = 1
    while True:
        folder = tmp_path / str(number)
        if fresh is not None:
            shutil.copytree(fresh, folder)
        disk = Disk()
        fault = fail_nth(number, code, lasting)
        acknowledged = tried = 0
        with disk.under_sqlite():
            disk.fault = fault
            try:
                acknowledged, tried = work_on(folder)
            except (StoreError, StorageFullError) as error:
                require_one_line(error)
                require_fault(fault.seen[0] >= number, number, error)
        with Store(None, folder, ballast_bytes=0) as store:
            found = store_work.look(store, STATES[-1])
        assert found in STATES[acknowledged : tried + 1], f"access {number}"
        assert fault.seen[0] >= number or acknowledged == len(OPS), f"access {number} did not fail yet"
        shutil.rmtree(folder)
        if fault.seen[0] < number:
            return number
        number += step


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [IOERR, FULL], ids=["error", "full"])
def test_every_eleventh_access_can_fail(fresh: Path, tmp_path: Path, code: int, lasting: bool) -> None:
    assert fail_from_one_on(fresh, tmp_path, 11, code, lasting) > 100


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [IOERR, FULL], ids=["error", "full"])
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_every_access_can_fail(fresh: Path, tmp_path: Path, code: int, lasting: bool, begun: bool) -> None:
    assert fail_from_one_on(fresh if begun else None, tmp_path, 1, code, lasting) > 100


def test_making_a_store_can_fail_anywhere(tmp_path: Path) -> None:
    assert fail_from_one_on(None, tmp_path, 17, IOERR, lasting=False) > 100


def filled(folder: Path, ballast_bytes: int) -> Store:
    store = Store(None, folder, ballast_bytes=ballast_bytes)
    store.put_tenant(TenantRow("a", 16))
    for number in range(60):
        store.put_lease(LeaseRow("a", f"l{number}", 1, 1))
    return store


def release_all(store: Store) -> None:
    """As the server does it: intent, deletion, audit, done."""
    for lease in store.leases():
        number = store.intend("release", lease.tenant, lease.name, store.next_epochs(freeing=True), freeing=True)
        with store.transaction(freeing=True) as t:
            assert t.delete_lease(lease.tenant, lease.name)
            t.audit(AuditRow("op", "a", "lease.release", lease.name))
            t.done(number)


def refused_for_room(work: Callable[[], object]) -> None:
    with pytest.raises(StorageFullError, match="releasing still works"):
        work()


def test_a_full_disk_refuses_what_is_new_and_lets_go(tmp_path: Path) -> None:
    disk = Disk()
    with disk.under_sqlite(), filled(tmp_path / "state", 1 << 20) as store:
        assert store.ballast.held

        def no_room(kind: str, _name: str) -> int:
            return FULL if kind == "write" and store.ballast.held else OK

        disk.fault = no_room
        refused_for_room(lambda: store.put_lease(LeaseRow("a", "more", 1, 1)))
        assert len(store.leases()) == 60
        assert store.ballast.held, "refusing needs no room"
        release_all(store)
        assert not store.ballast.held
        assert store.leases() == []
    with Store(None, tmp_path / "state", 1 << 20) as store:
        assert store.leases() == []
        assert len(store.audits()) == 60
        assert store.ballast.held


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, where one can be mounted."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "corepool-test", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill_up(folder: Path) -> None:
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_really_full_disk(small_disk: Path) -> None:
    state = small_disk / "state"
    with filled(state, 1 << 20) as store:
        assert store.ballast.held
        fill_up(small_disk)
        refused_for_room(lambda: store.put_tenant(TenantRow("b", 1)))
        refused_for_room(lambda: store.packages.add(sys.executable))
        assert len(store.leases()) == 60
        store.close()
    with Store(None, state, 1 << 20) as store:  # a restart needs no room either
        assert len(store.leases()) == 60
        release_all(store)
        assert store.leases() == []
        refused_for_room(lambda: store.put_tenant(TenantRow("b", 1)))
        (small_disk / "filler").unlink()
        store.put_tenant(TenantRow("b", 1))
    with Store(None, state, 1 << 20) as store:
        assert [row.name for row in store.tenants()] == ["a", "b"]
        assert store.ballast.held


def test_admission_stops_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path / "state", 1 << 16) as store:
        monkeypatch.setattr(guard, "RESERVE_BYTES", 1 << 62)
        real = guard.os.statvfs(tmp_path)
        nearly = type(real)([*real[:3], real.f_blocks // 50, real.f_blocks // 50, *real[5:]])
        monkeypatch.setattr(guard.os, "statvfs", lambda _path: nearly)
        refused_for_room(lambda: store.put_tenant(TenantRow("b", 1)))
        release_all(store)
        assert store.leases() == []


FILE_LIMIT = """
import resource, sys
from corepool.errors import StorageFullError
from corepool.server.store import LeaseRow, Store, TenantRow
store = Store(None, sys.argv[1], ballast_bytes=0)
store.put_tenant(TenantRow("a", 16))
size = max(each.stat().st_size for each in store.folder.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40000, resource.RLIM_INFINITY))
count = 0
try:
    while count < 1000:
        store.put_lease(LeaseRow("a", f"l{count}", 1, 1, extra={"fill": "x" * 20000}))
        count += 1
except StorageFullError as error:
    print(count, len(store.leases()), len(str(error).splitlines()))
"""


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILE_LIMIT, str(tmp_path / "state")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.stderr == ""
    stored, seen, lines = map(int, run.stdout.split())
    assert (seen, lines) == (stored, 1)
    with Store(None, tmp_path / "state", 0) as store:
        assert len(store.leases()) == stored


def test_no_file_descriptor_left_is_an_error_in_one_line(tmp_path: Path) -> None:
    Store(None, tmp_path / "state", 0).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(Path("/dev/null").open("rb"))  # noqa: SIM115
        for spare in range(3):
            with pytest.raises(StoreError) as caught:
                Store(None, tmp_path / "state", 0)
            assert "\n" not in str(caught.value), spare
            taken.pop().close()
    finally:
        for each in taken:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    Store(None, tmp_path / "state", 0).close()


def test_a_folder_taken_away_is_noticed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with filled(state, 0) as store:
        shutil.rmtree(state)
        for work in (lambda: store.put_tenant(TenantRow("b", 1)), store.leases):
            with pytest.raises(StoreError, match="removed or replaced"):
                work()
        assert not store.alive()


@pytest.mark.parametrize("what", ["a file", "no folder above", "database is a folder"])
def test_impossible_folders_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    if what == "a file":
        state.write_text("hello")
    elif what == "no folder above":
        (tmp_path / "file").write_text("")
        state = tmp_path / "file" / "state"
    else:
        (state / "corepool.db").mkdir(parents=True)
    with pytest.raises(CorepoolError) as caught:
        Store(None, state, 0)
    assert "\n" not in str(caught.value)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with filled(tmp_path / "state", 1 << 16) as store:
        store.packages.add(Path(__file__))
        modes = {path.name: path.stat().st_mode & 0o77 for path in [store.folder, *store.folder.iterdir()]}
    assert set(modes.values()) == {0}, modes


def test_a_disk_made_read_only_is_noticed_without_a_change_a_full_one_will_do(small_disk: Path) -> None:
    with filled(small_disk / "state", 1 << 20) as store:
        store.check()
        fill_up(small_disk)
        store.check()
        (small_disk / "filler").unlink()
        state = str(small_disk / "state")
        # The same folder once more over itself: a disk that is written to is made read-only by its errors alone.
        for how in (["--bind", state, state], ["-o", "remount,bind,ro", state]):
            subprocess.run(["mount", *how], check=True)
        try:
            with pytest.raises(StoreError, match="cannot be written"):
                store.check()
        finally:
            subprocess.run(["umount", "-l", state], check=True)
        store.check()
        serial = store.serial
        store.check()
        assert store.serial == serial


def test_a_state_folder_that_is_gone_is_noticed_without_a_change(tmp_path: Path) -> None:
    with filled(tmp_path / "state", 1 << 16) as store:
        (tmp_path / "state").rename(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="removed or replaced"):
            store.check()
        (tmp_path / "elsewhere").rename(tmp_path / "state")
        store.check()
