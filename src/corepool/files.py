"""Puts files on disk whole or not at all, and opens only what really is a file.

It must not know what the files hold.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def refuse_special(path: Path) -> None:
    """Raise OSError (IsADirectoryError for a folder) if ``path`` exists and is no regular file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "is a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(22, "is not a regular file", str(path))


def require_writable(path: Path) -> None:
    """Raise OSError if a file could not be put at ``path``: asked before long work, so that it is not done in vain."""
    refuse_special(path)
    parent = path.resolve().parent
    if not parent.exists():
        raise FileNotFoundError(2, "the folder for it does not exist", str(path))
    if not parent.is_dir():
        raise NotADirectoryError(20, "its parent is not a folder", str(path))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(13, "its folder may not be written to", str(path))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends; on any error nothing is left behind.

    A symbolic link is followed. Devices, pipes and folders are refused. Raises OSError.
    """
    refuse_special(path)
    target = path.resolve()
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
