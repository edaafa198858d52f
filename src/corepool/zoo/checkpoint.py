"""Reads the state dictionary of a torch checkpoint in the legacy (pre-zip) format, by tensor rebuilding alone.

It must not know any network, ONNX or torch itself, and must never run code that a file names.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from corepool.errors import ModelError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_MEMO = 1 << 20  # the unpickler allocates as many slots as the largest memo index says
_MAX_BYTES = 1 << 30  # a checkpoint larger than this is none that the zoo wants to read

_STORAGE_TYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _StorageType:
    """Stands for a storage class that the pickle names."""

    dtype: np.dtype[Any]


@dataclass(eq=False)
class _Storage:
    """A flat run of elements; the bytes come after the pickle, so they are filled in later."""

    key: str
    dtype: np.dtype[Any]
    count: int
    values: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint8))


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it: a strided window on a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> npt.NDArray[Any]:
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if count and last >= self.storage.count:
            raise ValueError(f"tensor reaches past the end of storage {self.storage.key!r}")
        if count > self.storage.count:
            raise ValueError(f"tensor is larger than its storage {self.storage.key!r}")
        if not count:
            return np.empty(self.shape, self.storage.dtype)
        size = self.storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            self.storage.values[self.offset :], self.shape, [s * size for s in self.strides], writeable=False
        )
        return view.copy()


def _natural(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError(f"{what} is not a sensible whole number: {value!r:.60}")
    return value


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_ignored: object) -> _View:
    """Stands for torch._utils._rebuild_tensor_v2; gradients and hooks are of no interest."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor is described by values of the wrong kind")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("shape and strides of a tensor do not fit together")
    return _View(
        storage,
        _natural(offset, "a tensor's offset"),
        tuple(_natural(n, "a dimension") for n in shape),
        tuple(_natural(n, "a stride") for n in strides),
    )


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something other than tensors."""


class _TensorUnpickler(pickle.Unpickler):
    """Knows ordered dictionaries, tensor rebuilding and storage types by name; refuses every other name."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_TYPES:
            return _StorageType(_STORAGE_TYPES[name])
        raise _Refused(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            raise _Refused("it refers to an object that is no tensor storage")
        _, kind, key, _location, count, view = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or view is not None:
            raise _Refused("it describes a storage in a way that is not supported")
        storage = self.storages.setdefault(key, _Storage(key, kind.dtype, _natural(count, "a storage's size")))
        if storage.dtype != kind.dtype or storage.count != count:
            raise _Refused(f"it describes storage {key!r} twice and differently")
        return storage


def _check_memo(file: BinaryIO) -> None:
    """Refuse a pickle that would make the unpickler's table of known objects huge; the file's position is kept."""
    start = file.tell()
    for opcode, argument, _position in pickletools.genops(file):
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > _MAX_MEMO:
            raise _Refused("it numbers more objects than tensors need")
    file.seek(start)


def _plain(file: BinaryIO) -> Any:
    """One pickle of plain values: numbers, strings, lists, dictionaries."""

    class _PlainUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            raise _Refused(f"it asks for {module}.{name} where only plain values belong")

    _check_memo(file)
    return _PlainUnpickler(file).load()


def _fill(file: BinaryIO, storages: Mapping[str, _Storage]) -> None:
    keys = _plain(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise ValueError("its list of storages does not match its tensors")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise ValueError(f"storage {key!r} has {count} elements, its tensors say {storage.count}")
        data = file.read(count * storage.dtype.itemsize)
        if len(data) != count * storage.dtype.itemsize:
            raise EOFError("it ends in the middle of a storage")
        storage.values = np.frombuffer(data, storage.dtype)


def _parse(file: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    if _plain(file) != _MAGIC:
        raise ValueError("it is no torch checkpoint of the legacy format")
    if _plain(file) != _PROTOCOL:
        raise ValueError("it is of another version of the legacy format")
    system = _plain(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was not written on a little-endian machine")
    _check_memo(file)
    unpickler = _TensorUnpickler(file)
    state = unpickler.load()
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, _View) for k, v in state.items()):
        raise ValueError("it holds something other than named tensors")
    _fill(file, unpickler.storages)
    return {name: view.array() for name, view in state.items()}


def read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the named tensors of a legacy torch checkpoint, as contiguous arrays in the file's order.

    Raises ModelError if the file cannot be read, is truncated or damaged, or names anything but tensors.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"checkpoint {path.name}: {size} bytes are more than the {_MAX_BYTES} that are read")
        return _parse(io.BytesIO(path.read_bytes()))
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"checkpoint {path.name}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a hostile pickle can provoke any of them
        text = str(error) or type(error).__name__
        raise ModelError(
            f"checkpoint {path.name}: refused: {text}; install the package that it came with anew"
        ) from error
