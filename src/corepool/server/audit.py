"""The audit log as JSON lines beside the table, for those who collect logs.

It must not know what is audited; the table in the store is the record, the file a copy of it.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from corepool.server.store import AuditRow, Store

ROTATE_BYTES = 16 << 20
FILES_KEPT = 4
CATCH_UP = 1000  # rows at a time
MISSED = 5000  # where the file is gone altogether, it begins so many rows back: a start must not take long


class AuditFile:
    """Appends each audit row that the store commits to ``audit.jsonl`` in the state folder.

    What a crash kept from the file is added at the next start. A full disk costs lines of the file, not of the table.
    """

    def __init__(self, store: Store, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = store.folder / "audit.jsonl"
        self._rotate_bytes = rotate_bytes
        self._lock = threading.Lock()
        with store.transaction(freeing=True) as t:
            newest = int(t.meta("audit_number") or 0)
        last = max(self._last(), newest - MISSED)
        while rows := store.audits(after=last, limit=CATCH_UP):
            for row in rows:
                self.write(row)
            last = rows[-1].id
        store.audit_sinks.append(self.write)

    def write(self, row: AuditRow) -> None:
        line = json.dumps(asdict(row), ensure_ascii=True) + "\n"
        with self._lock, suppress(OSError):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, line.encode())
                size = os.fstat(handle).st_size
            finally:
                os.close(handle)
            if size >= self._rotate_bytes:
                self._rotate()

    def _rotate(self) -> None:
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))
        self._numbered(FILES_KEPT).unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _last(self) -> int:
        """The number of the last row in the file; a line that a crash cut short is ended."""
        for path in (self.path, self._numbered(1)):
            try:
                with path.open("rb+") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(size - 65536, 0))
                    tail = file.read()
                    if tail and not tail.endswith(b"\n"):
                        file.write(b"\n")
            except OSError:
                continue
            for line in reversed(tail.splitlines()):
                with suppress(ValueError, TypeError, KeyError):
                    return int(json.loads(line)["id"])
        return 0
