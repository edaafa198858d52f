"""Reading .npz files that may hold anything.

It must not know devices.
"""

import io
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from corepool.errors import InputError
from corepool.runtime.host import HostPort
from corepool.runtime.inputs import read_npz

AXES = ((), ("c",), ("h",), ("w",))
IMAGE = HostPort("image", (1, 3, 2, 2), AXES, "float32", 0.1, 0, 0, 3, 2, 2, block=8)
MASK = HostPort("mask", (1, 1, 2, 2), AXES, "uint8", 0.1, 0, 64, 1, 2, 2, block=8)
GOOD = {
    "image": np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2),
    "mask": np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_sound_file(tmp_path: Path, save: object) -> None:
    path = tmp_path / "in.npz"
    assert callable(save)
    save(path, **GOOD)
    found = read_npz(path, [IMAGE, MASK])
    assert all(np.array_equal(found[name], GOOD[name]) for name in GOOD)
    assert set(found) == set(GOOD)


BAD = {
    "missing": ({"image": GOOD["image"]}, "'mask' is missing"),
    "extra": (GOOD | {"more": GOOD["mask"]}, "there is no input 'more'"),
    "shape": (GOOD | {"image": GOOD["image"][0]}, "'image' must have the shape [1, 3, 2, 2], not [3, 2, 2]"),
    "type": (GOOD | {"image": GOOD["image"].astype(np.float16)}, "'image' must be float32, not float16"),
    "objects": (GOOD | {"image": np.array([{}], dtype=object)}, "'image' must be float32, not object"),
    "all at once": ({"mask": GOOD["image"], "b": GOOD["mask"]}, "there is no input 'b'"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD.keys())
def test_unfit_arrays_are_listed(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_npz(path, [IMAGE, MASK])
    text = str(caught.value)
    assert text.endswith("expected: 'image' float32[1, 3, 2, 2], 'mask' uint8[1, 1, 2, 2]")
    assert text.count("'mask'") <= 4
    assert "'image' is missing; 'image'" not in text


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    sound = io.BytesIO()
    np.savez(sound, **GOOD)
    data = sound.getvalue()
    broken = bytearray(data)
    broken[len(data) // 4] ^= 0xFF
    wrong_entry = io.BytesIO()
    with zipfile.ZipFile(wrong_entry, "w") as archive:
        archive.writestr("image.npy", b"not an array")
    for content in (b"", b"hello", data[: len(data) // 2], bytes(broken), wrong_entry.getvalue()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="expected: 'image'"):
            read_npz(path, [IMAGE, MASK])


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_damaged_files_never_raise_anything_else(tmp_path: Path, cut: int) -> None:
    sound = io.BytesIO()
    np.savez_compressed(sound, **GOOD)
    broken = bytearray(sound.getvalue())
    broken[cut % len(broken)] ^= 0x55
    path = tmp_path / "in.npz"
    path.write_bytes(broken)
    try:
        found = read_npz(path, [IMAGE, MASK])
    except InputError:
        return
    assert set(found) == {"image", "mask"}  # the flipped bits lie where a zip file says nothing of importance


def test_bombs_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (1, 3, 4096, 4096)}
        )  # fmt: skip
        for _ in range(64):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=re.escape("not [1, 3, 4096, 4096]")):
        read_npz(path, [IMAGE])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "none"):
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the place
            read_npz(path, [IMAGE])
