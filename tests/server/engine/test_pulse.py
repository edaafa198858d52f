"""Whether the loss of the store is noticed while nobody needs it, and its return: with both databases."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from corepool.errors import StoreError
from corepool.server.engine.pulse import Pulse
from corepool.server.store import Store, TenantRow

EVERY_S = 0.02


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def beating() -> Iterator[Callable[..., Pulse]]:
    made: list[Pulse] = []

    def make(check: Callable[[], None], patience_s: float = 10.0) -> Pulse:
        made.append(Pulse(check, EVERY_S, patience_s))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_trouble_comes_and_goes(beating: Callable[..., Pulse]) -> None:
    broken: list[Exception] = []
    count = [0]

    def check() -> None:
        count[0] += 1
        if broken:
            raise broken[0]

    pulse = beating(check)
    until(lambda: count[0] > 2)
    assert pulse.trouble is None
    for error in (StoreError("it is gone"), ZeroDivisionError()):
        broken[:] = [error]
        until(lambda: pulse.trouble is not None)
        broken.clear()
        until(lambda: pulse.trouble is None)


def test_a_store_that_never_answers_is_no_store(beating: Callable[..., Pulse]) -> None:
    answering = threading.Event()
    pulse = beating(lambda: answering.wait(60) and None, patience_s=0.1)
    until(lambda: "not answered" in str(pulse.trouble))
    answering.set()
    until(lambda: pulse.trouble is None)


def test_a_folder_that_goes_and_comes(tmp_path: Path, beating: Callable[..., Pulse]) -> None:
    with Store(None, tmp_path / "state", ballast_bytes=0) as store:
        pulse = beating(store.check)
        shutil.move(tmp_path / "state", tmp_path / "away")
        until(lambda: "removed or replaced" in str(pulse.trouble))
        shutil.move(tmp_path / "away", tmp_path / "state")
        until(lambda: pulse.trouble is None)
        store.put_tenant(TenantRow("a", 1))
        pulse.stop()


def backend(database: str) -> psutil.Process:
    """PostgreSQL's process that serves the store."""
    with psycopg.connect(database, autocommit=True) as admin:
        row = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'corepool' AND datname = current_database()"
        ).fetchone()
    assert row is not None
    return psutil.Process(row[0])


def test_postgresql_that_cuts_the_connection_is_connected_anew(
    tmp_path: Path, database: str, beating: Callable[..., Pulse]
) -> None:
    with Store(database, tmp_path / "state", ballast_bytes=0) as store:
        pulse = beating(store.check)
        first = backend(database)
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", (first.pid,))
        until(lambda: not first.is_running() and pulse.trouble is None)
        until(lambda: backend(database).pid != first.pid)
        store.put_tenant(TenantRow("a", 1))
        pulse.stop()


def test_postgresql_that_hangs_is_noticed(tmp_path: Path, database: str, beating: Callable[..., Pulse]) -> None:
    with Store(database, tmp_path / "state", ballast_bytes=0) as store:
        pulse = beating(store.check, patience_s=0.3)
        process = backend(database)
        process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: "not answered" in str(pulse.trouble))
        finally:
            process.send_signal(signal.SIGCONT)
        until(lambda: pulse.trouble is None)
        pulse.stop()


def test_postgresql_that_takes_no_changes_is_noticed(
    tmp_path: Path, database: str, beating: Callable[..., Pulse]
) -> None:
    def read_only(value: str) -> None:
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off")
            row = admin.execute("SELECT current_database()").fetchone()
            assert row is not None
            admin.execute(f"ALTER DATABASE {row[0]} SET default_transaction_read_only = {value}")
        backend(database).terminate()  # what holds for a connection is decided when it is made

    with Store(database, tmp_path / "state", ballast_bytes=0) as store:
        pulse = beating(store.check)
        read_only("on")
        until(lambda: "takes no changes" in str(pulse.trouble))
        read_only("off")
        until(lambda: pulse.trouble is None)
        pulse.stop()
