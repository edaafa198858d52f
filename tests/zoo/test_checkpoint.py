"""The checkpoint reader: right tensors from good files, refusal of all others. It must not know any network."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corepool.errors import ModelError
from corepool.zoo import checkpoint, mobilenet_v2

MAGIC = 0x1950A86A20F9469CFC6C


class FloatStorage:
    """Pickled by reference under torch's name."""


def _rebuild_tensor_v2(*args: object) -> None:
    raise AssertionError("only named in pickles, never called")


FloatStorage.__module__ = "torch"
_rebuild_tensor_v2.__module__ = "torch._utils"


@pytest.fixture(autouse=True)
def torch_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickling by reference looks names up in their modules, so modules of these names must be there."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    monkeypatch.setattr(torch, "FloatStorage", FloatStorage, raising=False)
    monkeypatch.setattr(torch, "_utils", utils, raising=False)
    monkeypatch.setattr(utils, "_rebuild_tensor_v2", _rebuild_tensor_v2, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


class Stored:
    def __init__(self, key: str, count: int) -> None:
        self.pid = ("storage", FloatStorage, key, "cpu", count, None)


class Tensor:
    def __init__(self, stored: Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.args: tuple[Any, ...] = (stored, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self.args


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.pid if isinstance(obj, Stored) else None


def write(path: Path, state: object, storages: dict[str, np.ndarray], *, magic: int = MAGIC) -> Path:
    with path.open("wb") as file:
        for value in (magic, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
            pickle.dump(value, file, 2)
        _Pickler(file, 2).dump(state)
        pickle.dump(list(storages), file, 2)
        for values in storages.values():
            file.write(struct.pack("<q", values.size) + values.astype("<f4").tobytes())
    return path


VALUES = np.arange(12, dtype=np.float32)


def good(path: Path) -> Path:
    stored = Stored("7", 12)
    state = collections.OrderedDict(
        a=Tensor(stored, 0, (3, 4), (4, 1)), b=Tensor(stored, 1, (2, 3), (1, 4)), c=Tensor(stored, 5, (), ())
    )
    return write(path, state, {"7": VALUES})


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    tensors = checkpoint.read(good(tmp_path / "good.pth"))
    assert list(tensors) == ["a", "b", "c"]
    np.testing.assert_array_equal(tensors["a"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(tensors["b"], [[1, 5, 9], [2, 6, 10]])
    np.testing.assert_array_equal(tensors["c"], np.array(5, np.float32), strict=True)


def test_the_installed_checkpoint_is_read() -> None:
    tensors = checkpoint.read(mobilenet_v2.weights_path())
    assert len(tensors) == 314
    assert tensors["classifier.1.weight"].shape == (1000, 1280)
    assert tensors["features.0.1.num_batches_tracked"].dtype == np.int64
    assert (tensors["features.0.1.running_var"] > 0).all()


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["state", "first"])
def test_a_planted_call_is_refused_and_not_made(place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "owned", tmp_path / "bad.pth"
    if place == "state":
        write(path, collections.OrderedDict(a=Malicious(marker)), {})
    else:
        path.write_bytes(pickle.dumps(Malicious(marker), 2))
    pickle.loads(pickle.dumps(Malicious(tmp_path / "control"), 2))  # the plant does work where nothing stops it
    assert (tmp_path / "control").is_dir()
    with pytest.raises(ModelError, match=r"bad\.pth.*mkdir"):
        checkpoint.read(path)
    assert not marker.exists()


def test_builtins_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.pth", collections.OrderedDict(a=complex(1, 2)), {})
    with pytest.raises(ModelError, match="complex"):
        checkpoint.read(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = good(tmp_path / "good.pth").read_bytes()
    for length in range(len(whole)):
        path = tmp_path / "short.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"short\.pth"):
            checkpoint.read(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (5, (2, 4), (4, 1)),
        (0, (12, 1 << 30), (1, 0)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    state = collections.OrderedDict(a=Tensor(Stored("0", 12), offset, shape, strides))
    with pytest.raises(ModelError, match=r"bad\.pth"):
        checkpoint.read(write(tmp_path / "bad.pth", state, {"0": VALUES}))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="legacy"):
        checkpoint.read(write(tmp_path / "bad.pth", {}, {}, magic=1))
    with pytest.raises(ModelError, match="named tensors"):
        checkpoint.read(write(tmp_path / "bad.pth", {"a": 1}, {}))
    with pytest.raises(ModelError, match="does not match"):
        checkpoint.read(write(tmp_path / "bad.pth", {}, {"0": VALUES}))
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.read(tmp_path / "none.pth")


def test_a_storage_of_impossible_size_takes_no_memory(tmp_path: Path) -> None:
    state = collections.OrderedDict(a=Tensor(Stored("0", 1 << 39), 0, (1 << 39,), (1,)))
    with pytest.raises(ModelError, match="12 elements"):
        checkpoint.read(write(tmp_path / "bad.pth", state, {"0": VALUES}))


def test_a_huge_memo_index_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(
        pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 1 << 31) + pickle.STOP
    )
    with pytest.raises(ModelError, match="numbers more objects"):
        checkpoint.read(path)
