"""A disk under SQLite that can be watched, cut off from power, and made to fail.

It must not know what is stored. It stands between SQLite and the operating system by a VFS of its own, and works on
the library that Python's sqlite3 module uses.
"""

from __future__ import annotations

import _sqlite3
import ctypes as c
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECTOR = 512
OK, FULL, IOERR = 0, 13, 10
IOERR_READ, IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_DELETE, CANTOPEN = 266, 778, 1034, 1546, 2570, 14

# The name is an address, not c_char_p: SQLite keeps it as long as the file is open, and expects what it passed.
OPEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.c_void_p)
DELETE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_int)
DATA = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
TRUNCATE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64)
SYNC = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)


class Methods(c.Structure):
    """sqlite3_io_methods, of which the members that are replaced have names."""

    _fields_ = (
        ("version", c.c_int),
        ("close", c.c_void_p),
        ("read", c.c_void_p),
        ("write", c.c_void_p),
        ("truncate", c.c_void_p),
        ("sync", c.c_void_p),
        ("others", c.c_void_p * 13),
    )


class Vfs(c.Structure):
    """sqlite3_vfs, likewise."""

    _fields_ = (
        ("version", c.c_int),
        ("file_size", c.c_int),
        ("longest_path", c.c_int),
        ("next", c.c_void_p),
        ("name", c.c_char_p),
        ("data", c.c_void_p),
        ("open", c.c_void_p),
        ("delete", c.c_void_p),
        ("others", c.c_void_p * 14),
    )


class Op(NamedTuple):
    """One thing that happened: "write", "truncate", "sync", "delete" of a file, or a "note" of the test."""

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""


class Disk:
    """Hears of each access. ``fault`` is asked before each with its kind and name: 0 lets it pass, else it fails so."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.recording = False
        self.fault: Callable[[str, str], int] = lambda kind, name: OK
        self._kept: list[Any] = []
        self._names: dict[int, str] = {}

    def note(self, text: str) -> None:
        self.ops.append(Op("note", text))

    def _seen(self, op: Op) -> None:
        if self.recording:
            self.ops.append(op)

    def _patched(self, address: int) -> Methods:
        """The methods of an open file, with ours in front."""
        plain = Methods.from_address(c.c_void_p.from_address(address).value or 0)
        methods = Methods()
        c.memmove(c.byref(methods), c.byref(plain), c.sizeof(Methods))
        read, write = DATA(plain.read), DATA(plain.write)
        truncate, sync = TRUNCATE(plain.truncate), SYNC(plain.sync)

        def on_read(file: int, buffer: int, amount: int, offset: int) -> int:
            return self.fault("read", self._names[file]) or read(file, buffer, amount, offset)

        def on_write(file: int, buffer: int, amount: int, offset: int) -> int:
            name = self._names[file]
            failed = self.fault("write", name)
            if not failed:
                self._seen(Op("write", name, offset, c.string_at(buffer, amount)))
            return failed or write(file, buffer, amount, offset)

        def on_truncate(file: int, size: int) -> int:
            name = self._names[file]
            failed = self.fault("truncate", name)
            if not failed:
                self._seen(Op("truncate", name, size))
            return failed or truncate(file, size)

        def on_sync(file: int, flags: int) -> int:
            name = self._names[file]
            failed = self.fault("sync", name)
            result: int = failed or sync(file, flags)
            if not failed:
                self._seen(Op("sync", name))
            return result

        ours = (DATA(on_read), DATA(on_write), TRUNCATE(on_truncate), SYNC(on_sync))
        for field, function in zip(("read", "write", "truncate", "sync"), ours, strict=True):
            setattr(methods, field, c.cast(function, c.c_void_p).value)
        self._kept += [methods, *ours]
        return methods

    def _hooks(self, plain: Vfs, plain_address: int) -> tuple[Any, Any]:
        really_open, really_delete = OPEN(plain.open), DELETE(plain.delete)

        def on_open(_vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
            short = Path(c.string_at(name).decode()).name if name else ""
            failed = self.fault("open", short)
            result: int = failed or really_open(plain_address, name, file, flags, out)
            if failed:
                c.c_void_p.from_address(file).value = None  # no methods: there is nothing to close
            elif result == OK:
                self._names[file] = short
                c.c_void_p.from_address(file).value = c.addressof(self._patched(file))
            return result

        def on_delete(_vfs: int, name: bytes, folder_too: int) -> int:
            short = Path(name.decode()).name
            failed = self.fault("delete", short)
            if not failed:
                self._seen(Op("delete", short))
            return failed or really_delete(plain_address, name, folder_too)

        return OPEN(on_open), DELETE(on_delete)

    @contextmanager
    def under_sqlite(self) -> Iterator[Disk]:
        """Everything that SQLite opens within the block is on this disk."""
        library = c.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = c.c_void_p
        address = library.sqlite3_vfs_find(None)
        plain, vfs = Vfs.from_address(address), Vfs()
        c.memmove(c.byref(vfs), c.byref(plain), c.sizeof(Vfs))
        hooks = self._hooks(plain, address)
        vfs.name = b"watched"
        vfs.open, vfs.delete = (c.cast(each, c.c_void_p).value for each in hooks)
        self._kept += [vfs, *hooks]
        assert library.sqlite3_vfs_register(c.byref(vfs), 1) == OK
        try:
            yield self
        finally:
            library.sqlite3_vfs_unregister(c.byref(vfs))
            library.sqlite3_vfs_register(c.c_void_p(address), 1)


def fail_nth(number: int, code: int = IOERR, lasting: bool = False) -> Callable[[str, str], int]:
    """A fault at the n-th access (1 is the first), or from it on. ``calls`` of what is returned counts accesses."""
    exact = {
        "read": IOERR_READ,
        "write": IOERR_WRITE,
        "sync": IOERR_FSYNC,
        "truncate": IOERR_TRUNCATE,
        "delete": IOERR_DELETE,
        "open": CANTOPEN,
    }
    seen = [0]

    def fault(kind: str, _name: str) -> int:
        seen[0] += 1
        hit = seen[0] >= number if lasting else seen[0] == number
        return (exact[kind] if code == IOERR else code) if hit else OK

    fault.seen = seen  # type: ignore[attr-defined]
    return fault


class _File:
    """A file as a power cut may leave it: what was synced, and what came after."""

    def __init__(self) -> None:
        self.synced: bytearray | None = None
        self.pending: list[Op] = []

    def settle(self) -> None:
        self.synced = self.content(lambda: True)
        self.pending = []

    def content(self, lucky: Callable[[], bool]) -> bytearray | None:
        """Synced content with those later sectors that were lucky; None if the file itself was not."""
        if self.synced is None and not (self.pending and lucky()):
            return None
        found = bytearray(self.synced or b"")
        for op in self.pending:
            if op.kind == "truncate":
                if lucky():
                    del found[op.offset :]
                continue
            end = op.offset + len(op.data)
            start = op.offset
            while start < end:
                stop = min((start // SECTOR + 1) * SECTOR, end)
                if lucky():
                    found.extend(bytes(max(stop - len(found), 0)))
                    found[start:stop] = op.data[start - op.offset : stop - op.offset]
                start = stop
        return found


def after_power_cut(ops: list[Op], end: int, rng: np.random.Generator) -> dict[str, bytes]:
    """Files as they may be found if the power fails before ``ops[end]``: what was synced is there; of what was written
    since, some 512-byte sectors are and others are not."""
    files: dict[str, _File] = {}
    for op in ops[:end]:
        if op.kind == "note":
            continue
        if op.kind == "delete":
            files.pop(op.name, None)  # SQLite deletes what it needs no more
            continue
        file = files.setdefault(op.name, _File())
        if op.kind == "sync":
            file.settle()
        else:
            file.pending.append(op)
    share = float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))
    found = {name: file.content(lambda: bool(rng.random() < share)) for name, file in files.items()}
    return {name: bytes(content) for name, content in found.items() if content is not None}
