"""The audit file holds every row of the table once, whatever happens to either.

It must not know who writes audit rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corepool.server.audit import FILES_KEPT, AuditFile
from corepool.server.store import AuditRow, Store


def ids(folder: Path) -> list[int]:
    found = []
    for path in [*sorted(folder.glob("audit.jsonl.*"), reverse=True), folder / "audit.jsonl"]:
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line)["id"])
            except ValueError:
                found.append(-1)
    return found


def note(store: Store, count: int) -> None:
    for _ in range(count):
        store.audit(AuditRow("op", "t", "act", "line\nbreak \u2028", detail='"quoted"'))


def test_lines_that_a_crash_kept_away_are_added(tmp_path: Path) -> None:
    with Store(None, tmp_path, 0) as store:
        note(store, 3)
        AuditFile(store)
        note(store, 3)
        assert ids(tmp_path) == [1, 2, 3, 4, 5, 6]
    with Store(None, tmp_path, 0) as store:
        note(store, 2)
        AuditFile(store)
        note(store, 1)
        assert ids(tmp_path) == [*range(1, 10)]


def test_a_line_cut_short_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Store(None, tmp_path, 0) as store:
        AuditFile(store)
        note(store, 3)
    path.write_bytes(path.read_bytes()[:-20])
    with Store(None, tmp_path, 0) as store:
        AuditFile(store)
        note(store, 1)
    assert ids(tmp_path) == [1, 2, -1, 3, 4]


def test_a_block_that_fails_leaves_no_line(tmp_path: Path) -> None:
    def fail(store: Store) -> None:
        with store.transaction() as t:
            t.audit(AuditRow("op", "t", "act"))
            raise ValueError("after all")

    with Store(None, tmp_path, 0) as store:
        AuditFile(store)
        with pytest.raises(ValueError, match="after all"):
            fail(store)
        note(store, 1)
    assert ids(tmp_path) == [1]


def test_files_are_turned_over_and_bounded(tmp_path: Path) -> None:
    with Store(None, tmp_path, 0) as store:
        AuditFile(store, rotate_bytes=1000)
        note(store, 40)
        found = ids(tmp_path)
        assert found == [*range(found[0], 41)]
        assert len(list(tmp_path.glob("audit.jsonl*"))) == FILES_KEPT
        assert max(path.stat().st_size for path in tmp_path.glob("audit.jsonl*")) < 1400
    with Store(None, tmp_path, 0) as store:
        AuditFile(store, rotate_bytes=1000)
        assert ids(tmp_path) == found


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with Store(None, tmp_path, 0) as store:
        AuditFile(store)
        note(store, 2)
        assert [row.id for row in store.audits()] == [1, 2]
