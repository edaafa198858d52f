"""Calibration files that may hold anything: each is read, or refused with a line that names it.

It must not know the quantiser.
"""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from corepool.compiler.static.frontend.calibration import read_calibration
from corepool.errors import CalibrationError

SHAPES = {"image": (1, 3, 8, 8)}
SAMPLES = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


def refuse(path: Path, words: str) -> None:
    with pytest.raises(CalibrationError, match=words) as caught:
        read_calibration(path, SHAPES)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert "pickle" not in line


def stored(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, image=SAMPLES)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16", ">f4"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_sound_files(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    samples = np.asfortranarray(SAMPLES.astype(dtype))
    np.save(path, samples) if suffix == "npy" else np.savez(path, image=samples)
    found = np.concatenate([sample["image"] for sample in read_calibration(path, SHAPES)])
    np.testing.assert_array_equal(found, SAMPLES.astype(dtype).astype(np.float32))


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    refuse(pipe, "is not a regular file")
    refuse(Path("/dev/null"), "is not a regular file")
    refuse(tmp_path / "none.npz", "does not exist")
    refuse(tmp_path / "folder", "does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no calibration data")


@pytest.mark.parametrize("content", [b"", b"hello, world\n", stored()[:300], stored()[:-40], b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", ["npz", "npy", "png"])
def test_damaged_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    refuse(path, "cannot be read as calibration data")


@pytest.mark.parametrize("compressed", [True, False])
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, compressed: bool) -> None:
    data = stored(compressed)
    path = tmp_path / "data.npz"
    refused = 0
    for place in range(0, len(data), 37):
        broken = bytearray(data)
        broken[place] ^= 0x55
        path.write_bytes(broken)
        try:
            read_calibration(path, SHAPES)
        except CalibrationError as error:
            assert str(path) in str(error)  # noqa: PT017 - some flips change nothing of importance
            refused += 1
    assert refused > len(data) // 37 // 2


def test_bombs_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (3_000_000, 3, 8, 8)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(32):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    refuse(path, "larger than 1024 MiB: use fewer samples")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 8, 9), np.float32), r"'image' is float32 \[2, 3, 8, 9\]; needed is \[N, 3, 8, 8\]"),
        (np.zeros((0, 3, 8, 8), np.float32), r"'image' is float32 \[0, 3, 8, 8\]"),
        (np.array([{}], dtype=object), "'image' is object"),
        (np.full((1, 3, 8, 8), 1e300), "NaN or infinity"),
        (np.float32(3), r"'image' is float32 \[\]"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_unfit_arrays(tmp_path: Path, array: np.ndarray, words: str, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    np.save(path, array, allow_pickle=True) if suffix == "npy" else np.savez(path, image=array)
    refuse(path, words)
