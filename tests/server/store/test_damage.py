"""A changed bit anywhere in the store is noticed, or changes nothing.

It must not know which bit means what.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corepool.errors import StoreError
from corepool.server.store import Store, backup
from corepool.server.store.database import FILE_NAME
from corepool.server.store.guard import MarkFile
from support import store_work

PAGE = 4096
LOG = FILE_NAME + "-wal"
OPS = store_work.work(seed=3, count=150)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[store_work.State]]:
    """A store that was closed, so that all is in the database file."""
    folder = tmp_path_factory.mktemp("closed") / "state"
    with Store(None, folder, ballast_bytes=0) as store:
        for op in OPS:
            store_work.apply(store, op)
        rows = list(store_work.rows_of(store))
    assert not (folder / LOG).exists()
    return folder, rows


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[store_work.State]]:
    """A store as a killed server leaves it: the last changes are in the log only."""
    folder = tmp_path_factory.mktemp("cut")
    with Store(None, folder / "running", ballast_bytes=0) as store:
        for op in OPS[:60]:
            store_work.apply(store, op)
        store._database.handle.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for op in OPS[60:70]:
            store_work.apply(store, op)
        rows = list(store_work.rows_of(store))
        shutil.copytree(folder / "running", folder / "state")
    assert (folder / "state" / LOG).stat().st_size > 10 * PAGE
    return folder / "state", rows


def judge(folder: Path, rows: list[store_work.State]) -> str:
    """ "noticed" by a StoreError in one line that names the file, or "harmless"; anything else fails."""
    try:
        with Store(None, folder, ballast_bytes=0) as store:
            assert list(store_work.rows_of(store)) == rows
            store.next_epochs()
    except StoreError as error:
        text = str(error)
        assert "\n" not in text
        assert FILE_NAME in text
        assert "restore a backup" in text
        return "noticed"
    return "harmless"


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def judged(source: Path, rows: list[store_work.State], name: str, bits: Iterator[int], to: Path) -> dict[str, int]:
    found = {"noticed": 0, "harmless": 0}
    for bit in bits:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(source, to)
        flip(to / name, bit)
        found[judge(to, rows)] += 1
    return found


def bits_of(path: Path, step: int, each: int, rng: np.random.Generator) -> Iterator[int]:
    """``each`` random bits of every ``step`` bytes."""
    size = path.stat().st_size
    for start in range(0, size, step):
        yield from (start * 8 + int(bit) for bit in rng.choice(min(step, size - start) * 8, each, replace=False))


def first_bytes(path: Path, count: int, rng: np.random.Generator) -> Iterator[int]:
    """One random bit in each of the first ``count`` bytes of every page, where pages say what they are."""
    for start in range(0, path.stat().st_size, PAGE):
        yield from ((start + byte) * 8 + int(rng.integers(8)) for byte in range(count))


def test_a_bit_in_each_page(
    closed: tuple[Path, list[store_work.State]], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, rows = closed
    assert (folder / FILE_NAME).stat().st_size > 15 * PAGE
    found = judged(folder, rows, FILE_NAME, bits_of(folder / FILE_NAME, PAGE, 3, rng), tmp_path / "state")
    assert found["noticed"] > 5


def test_a_bit_in_each_frame_of_the_log(
    cut: tuple[Path, list[store_work.State]], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, rows = cut
    found = judged(folder, rows, LOG, bits_of(folder / LOG, PAGE, 2, rng), tmp_path / "state")
    assert found["noticed"] > 10


@pytest.mark.slow
def test_many_bits_in_each_page(
    closed: tuple[Path, list[store_work.State]], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, rows = closed
    path = folder / FILE_NAME
    found = judged(folder, rows, FILE_NAME, bits_of(path, PAGE, 80, rng), tmp_path / "state")
    assert found["noticed"] > 200
    found = judged(folder, rows, FILE_NAME, first_bytes(path, 64, rng), tmp_path / "state")
    assert found["noticed"] > 200


@pytest.mark.slow
def test_many_bits_of_the_log(
    cut: tuple[Path, list[store_work.State]], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, rows = cut
    found = judged(folder, rows, LOG, bits_of(folder / LOG, 512, 4, rng), tmp_path / "state")
    assert found["noticed"] > 500


def test_the_small_files_may_hold_anything(closed: tuple[Path, list[store_work.State]], tmp_path: Path) -> None:
    folder, rows = closed
    for name in ("mark", "lock"):
        for content in (b"", b"\xff" * 200, b"nonsense 1 2 3"):
            state = tmp_path / f"{name}{len(content)}"
            shutil.copytree(folder, state)
            (state / name).write_bytes(content)
            assert judge(state, rows) == "harmless"


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8192, 50000])
def test_a_database_cut_short(closed: tuple[Path, list[store_work.State]], tmp_path: Path, size: int) -> None:
    folder, rows = closed
    shutil.copytree(folder, tmp_path / "state")
    with (tmp_path / "state" / FILE_NAME).open("r+b") as file:
        file.truncate(size)
    assert judge(tmp_path / "state", rows) == "noticed"


@pytest.mark.parametrize("what", ["gone", "text", "another's", "older"])
def test_a_database_that_is_not_the_one(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    file = state / FILE_NAME
    with Store(None, state, 0) as store:
        for op in OPS[:10]:
            store_work.apply(store, op)
        backup(state, tmp_path / "older")
        for op in OPS[10:20]:
            store_work.apply(store, op)
    if what == "gone":
        file.unlink()
    elif what == "text":
        file.write_text("this is not a database, whatever its name says\n" * 200)
    elif what == "older":
        shutil.copyfile(tmp_path / "older" / FILE_NAME, file)
    else:
        import sqlite3

        file.unlink()
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE leases (x)")
        other.close()
    before = epoch_of(state)
    assert judge(state, []) == "noticed"
    if what in ("gone", "older"):
        with Store(None, state, 0, accept_loss=True) as store:
            assert store.next_epochs() > before
        with Store(None, state, 0) as store:
            assert bool(store.tenants()) == (what == "older")


def epoch_of(state: Path) -> int:
    mark = MarkFile(state / "mark")
    found = mark.read()
    mark.close()
    assert found is not None
    assert found.epoch > 0
    return found.epoch


def test_a_log_that_was_removed_is_noticed(cut: tuple[Path, list[store_work.State]], tmp_path: Path) -> None:
    folder, rows = cut
    shutil.copytree(folder, tmp_path / "state")
    (tmp_path / "state" / LOG).unlink()
    assert judge(tmp_path / "state", rows) == "noticed"


def test_a_changed_row_is_noticed_while_running(tmp_path: Path) -> None:
    import sqlite3

    with Store(None, tmp_path, 0) as store:
        for op in OPS[:30]:
            store_work.apply(store, op)
        other = sqlite3.connect(tmp_path / FILE_NAME)
        other.execute("UPDATE leases SET maximum = maximum + 1")
        other.commit()
        other.close()
        with pytest.raises(StoreError, match="'leases' is damaged"):
            store.leases()
        assert store.tenants()
    with pytest.raises(StoreError, match="'leases' is damaged"):
        Store(None, tmp_path, 0)
