"""Reads input arrays from .npz files without trusting them: nothing is unpickled, nothing large is read in vain.

It must not know devices.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError
from corepool.files import refuse_special
from corepool.runtime.host import Wanted, complaints

Array = npt.NDArray[Any]

HEADER_BYTES = 4096  # of an array; the header of a plain array has 128


def read_npz(path: Path, ports: Sequence[Wanted]) -> dict[str, Array]:
    """The arrays of an .npz file, checked against what ``ports`` expect before their data is read.

    Raises InputError, which lists every missing, unknown or unfit input, and OSError if the file cannot be read.
    """
    expected = f"expected: {', '.join(port.text for port in ports)}"
    by_name = {port.name: port for port in ports}
    found: list[str] = []
    arrays: dict[str, Array] = {}
    refuse_special(path)
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    name = entry.filename.removesuffix(".npy")
                    port = by_name.get(name)
                    if port is None:
                        found.append(f"there is no input {name!r}")
                        continue
                    with archive.open(entry) as member:
                        problems = _unfit(port, member.read(HEADER_BYTES))
                    found += problems
                    if not problems:
                        with archive.open(entry) as member:
                            arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                        found += complaints(port, arrays[name])
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error, lzma.LZMAError, RuntimeError) as error:
            raise InputError(f"{path} is not a sound .npz file: {error}; {expected}") from None
    found += [f"{name!r} is missing" for name in by_name if name not in arrays and not _said(name, found)]
    if found:
        raise InputError(f"{path}: wrong input: {'; '.join(found)}; {expected}")
    return arrays


def _said(name: str, found: Sequence[str]) -> bool:
    return any(text.startswith(f"{name!r} ") for text in found)


def _unfit(port: Wanted, head: bytes) -> list[str]:
    """What an array's header, which lies within ``head``, says against it."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        return [f"{port.name!r} is stored in the unknown array format {version}"]
    shape, _, dtype = reader(stream)
    found = []
    if dtype != np.dtype(port.dtype):
        found.append(f"{port.name!r} must be {port.dtype}, not {dtype}")
    if shape != port.shape:
        found.append(f"{port.name!r} must have the shape {list(port.shape)}, not {list(shape)}")
    return found
