"""Output files: names that NumPy's own writer cannot take, equal bytes, nothing half-written.

It must not know devices.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from corepool.errors import InputError
from corepool.runtime.outputs import write_npz

NAMES = (
    "file",
    "allow_pickle",
    "args",
    "self",
    "/model/head/out",
    "../up",
    "a\\b",
    "x.npy",
    "",
    "größe",
    "a\nb\x1b[2J",
)


def test_every_name_comes_back(tmp_path: Path) -> None:
    arrays = {name: np.full((2, 3), index, np.float32) for index, name in enumerate(NAMES)}
    arrays["scalar"] = np.array(7, np.int64)
    write_npz(tmp_path / "o.npz", arrays)
    with np.load(tmp_path / "o.npz") as found:
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert [entry.name for entry in tmp_path.iterdir()] == ["o.npz"]


def test_unpacking_stays_inside_the_folder(tmp_path: Path) -> None:
    write_npz(tmp_path / "o.npz", {"../../up": np.zeros(1), "/abs": np.zeros(1)})
    with zipfile.ZipFile(tmp_path / "o.npz") as archive:
        archive.extractall(tmp_path / "a" / "b")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy")) == ["a/b/abs.npy", "a/b/up.npy"]


def test_equal_arrays_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_npz(tmp_path / name, {"y": np.arange(5)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", ["a\0b", "x" * 70_000])
def test_names_that_no_file_can_hold_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"o\.npz: an \.npz file cannot hold"):
        write_npz(tmp_path / "o.npz", {"y": np.zeros(1), name: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "o.npz"
    write_npz(path, {"y": np.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        write_npz(path, {"y": np.zeros(1), "z": np.array([object()])})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["o.npz"]
