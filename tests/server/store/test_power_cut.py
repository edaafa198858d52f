"""After a power cut everything acknowledged is there, and nothing is half there.

It must not know the store's tables. The cut is simulated: all that SQLite wrote and synced is recorded, and folders are
made up as they may be found, with any 512-byte sectors missing that were not synced.
"""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from corepool.errors import StoreError
from corepool.server.store import Store
from corepool.server.store.database import FILE_NAME
from support import store_work
from support.disk import Disk, Op, after_power_cut

COUNT = 40
SEED = 5


def record(folder: Path, synchronous: str) -> tuple[list[Op], list[bytes]]:
    """What reaches the disk while a store is made and does its work, with a note of each operation acknowledged, and
    the mark after each."""
    disk, marks = Disk(), []
    with disk.under_sqlite():
        disk.recording = True
        store = Store(None, folder, ballast_bytes=0)
        handle = store._database.handle
        handle.execute(f"PRAGMA synchronous = {synchronous}")
        handle.execute("PRAGMA wal_autocheckpoint = 30")  # several times within this short work
        disk.note("open")
        marks.append((folder / "mark").read_bytes())
        for op in store_work.work(SEED, COUNT):
            store_work.apply(store, op)
            disk.note("done")
            marks.append((folder / "mark").read_bytes())
        disk.recording = False
        store.close()
    return disk.ops, marks


def found_after(
    ops: list[Op], marks: list[bytes], end: int, folder: Path, rng: np.random.Generator, marked: bool
) -> str:
    """How a store is found after a cut before ``ops[end]``: "sound", "lost" what was acknowledged, or "refused"."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in after_power_cut(ops, end, rng).items():
        (folder / name).write_bytes(content)
    notes = [op.name for op in ops[:end] if op.kind == "note"]
    acknowledged = notes.count("done")
    if marked and "open" in notes:  # the mark is not synced: it may be any that there ever was
        (folder / "mark").write_bytes(marks[int(rng.integers(0, acknowledged + 1))])
    states = store_work.states(store_work.work(SEED, COUNT))
    try:
        with Store(None, folder, ballast_bytes=0) as store:
            found, done = store_work.look(store, states[-1]), store.serial
    except StoreError:
        return "refused"
    # One operation more may be there: it was written, but its acknowledgement did not get out.
    if found == states[done] and acknowledged <= done <= acknowledged + 1:
        return "sound"
    return "lost" if found == states[done] else "torn"


def outcomes(
    tmp_path: Path, synchronous: str, trials: int, rng: np.random.Generator, marked: bool = True
) -> dict[str, int]:
    ops, marks = record(tmp_path / "recorded", synchronous)
    assert sum(op.kind == "sync" and op.name == FILE_NAME for op in ops) > 3, "no log was folded into the database"
    found: dict[str, int] = {}
    for end in rng.integers(0, len(ops) + 1, trials):
        kind = found_after(ops, marks, int(end), tmp_path / "cut", rng, marked)
        found[kind] = found.get(kind, 0) + 1
    return found


def test_nothing_acknowledged_is_lost(tmp_path: Path, rng: np.random.Generator) -> None:
    assert outcomes(tmp_path, "FULL", 100, rng) == {"sound": 100}


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_many_cuts(tmp_path: Path, rng: np.random.Generator) -> None:
    assert outcomes(tmp_path, "FULL", 3000, rng) == {"sound": 3000}


def test_the_simulation_sees_the_loss_of_a_weaker_setting(tmp_path: Path, rng: np.random.Generator) -> None:
    found = outcomes(tmp_path / "a", "NORMAL", 40, rng, marked=False)
    assert found["lost"] > 5
    assert set(found) == {"lost", "sound"}
    found = outcomes(tmp_path / "b", "NORMAL", 40, rng, marked=True)
    assert found["refused"] > 5, "the mark tells what was lost"
