"""Writes output arrays as .npz files, whatever they are called.

It must not know devices.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError
from corepool.files import replacing

MAX_NAME_BYTES = 65_000  # a zip member's name has at most 65,535


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an .npz file, whole or not at all; equal arrays give equal bytes. numpy.load finds each under its name.

    numpy.savez would take names such as ``file`` for its own arguments. Raises OSError, and InputError for names that
    no zip file can hold.
    """
    for name in arrays:
        if "\0" in name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise InputError(f"{path}: an .npz file cannot hold an output named {name[:40]!r}; rename it in the model")
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # with the date that zip files begin at
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
