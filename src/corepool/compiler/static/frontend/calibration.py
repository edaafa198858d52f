"""Reads calibration data that nobody vouches for: arrays, .npy and .npz files, pictures.

It must not know the quantiser.
"""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from corepool.errors import CalibrationError
from corepool.files import refuse_special

FloatArray = npt.NDArray[np.float32]
Calibration: TypeAlias = Mapping[str, npt.NDArray[Any]] | Path | str
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pictures as calibration data
BYTES_LIMIT = 1 << 30  # of all samples from files, as float32: some 1700 pictures of 3 x 224 x 224
_PICTURES = (".png", ".jpg", ".jpeg")
_HEADER_BYTES = 4096  # of an array; the header of a plain array has 128
_UNSOUND = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's inputs (constants left out) by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in constants
    }


def read_calibration(
    source: Calibration | None, shapes: Shapes, pixels: Set[str] = frozenset()
) -> list[dict[str, FloatArray]]:
    """Calibration samples, one dict of float32 arrays (batch 1) each.

    ``source`` maps input names to arrays [N, ...], or is a .npz file of such, a .npy file, or a folder of .npy, .npz,
    .png and .jpg files (pictures are cut to the input's size and normalised as ImageNet's; inputs in ``pixels`` get
    0 to 255). Raises CalibrationError.
    """
    if source is None:
        raise CalibrationError(
            "the model is float: quantising it needs calibration data (a folder of .npy, .npz, .png or .jpg files, or"
            f" a .npz file with inputs {', '.join(shapes)})"
        )
    if isinstance(source, Mapping):
        return _split(dict(source), shapes, "the calibration data")
    samples = _Reader(shapes, pixels).read(Path(source))
    if not samples:
        raise CalibrationError(f"no calibration data in {source}: it needs .npy, .npz, .png or .jpg files")
    return samples


class _Reader:
    """Reads files; what they hold is judged by their headers, before any of it is read or unpacked."""

    def __init__(self, shapes: Shapes, pixels: Set[str]) -> None:
        self.shapes = shapes
        self.pixels = pixels
        self.left = BYTES_LIMIT

    def read(self, path: Path) -> list[dict[str, FloatArray]]:
        """All samples of a file or folder; [] if it holds nothing of a known kind."""
        try:
            if not path.exists():
                raise CalibrationError(f"{path}: cannot be read as calibration data: it does not exist")
            files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read as calibration data: {error.strerror}") from None
        return [sample for file in files for sample in self._file(file)]

    def _file(self, path: Path) -> list[dict[str, FloatArray]]:
        from PIL import Image

        kind = path.suffix.lower()
        try:
            refuse_special(path)
            if kind == ".npz":
                with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                    return _split(self._members(archive, path), self.shapes, str(path))
            if kind not in (".npy", *_PICTURES):
                return []
            if len(self.shapes) > 1:
                raise CalibrationError(f"{path}: the model has inputs {', '.join(self.shapes)}; use .npz files instead")
            name, shape = next(iter(self.shapes.items()))
            if kind == ".npy":
                with path.open("rb") as file:
                    self._judge(name, file.read(_HEADER_BYTES), path)
                    file.seek(0)
                    array = _read_array(file)
            else:
                self._take(math.prod(shape) * 4, path)
                array = read_picture(path, shape, name in self.pixels)
            return _split({name: array}, self.shapes, str(path))
        except (*_UNSOUND, Image.DecompressionBombError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CalibrationError(f"{path}: cannot be read as calibration data: {reason}") from None

    def _members(self, archive: zipfile.ZipFile, path: Path) -> dict[str, npt.NDArray[Any]]:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        _check_names(entries, self.shapes, str(path))
        for name, entry in entries.items():
            with archive.open(entry) as member:
                self._judge(name, member.read(_HEADER_BYTES), path)
        arrays = {}
        for name, entry in entries.items():
            with archive.open(entry) as member:
                arrays[name] = _read_array(member)
        return arrays

    def _judge(self, name: str, head: bytes, path: Path) -> None:
        """Whether an array's header, which lies within ``head``, lets it be calibration data of an input."""
        stream = io.BytesIO(head)
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if reader is None:
            raise ValueError(f"'{name}' is stored in the unknown array format {version}")
        shape, _, dtype = reader(stream)
        wanted = self.shapes[name]
        _check_array(name, dtype, shape if shape != wanted[1:] else (1, *shape), wanted, str(path))
        self._take(math.prod(shape) * max(dtype.itemsize, 4), path)

    def _take(self, count: int, path: Path) -> None:
        if count > self.left:
            raise CalibrationError(
                f"{path}: with its {count} bytes the calibration data is larger than {BYTES_LIMIT >> 20} MiB: use fewer"
                " samples"
            )
        self.left -= count


def _read_array(file: BinaryIO | Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_picture(path: Path, shape: tuple[int, ...], raw: bool = False) -> FloatArray:
    """A picture as float32 of ``shape`` [1, 3, H, W] or [1, H, W, 3], normalised unless it is wanted ``raw`` (0..255);
    ValueError for other shapes."""
    from PIL import Image, ImageOps

    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(f"pictures do not fit an input of shape {list(shape)}; use .npy or .npz files")
    height, width = shape[1:3] if last else shape[2:4]
    with Image.open(path) as picture:
        fitted = ImageOps.fit(picture.convert("RGB"), (width, height))
    mean, deviation = np.array(MEAN, dtype=np.float32), np.array(DEVIATION, dtype=np.float32)
    pixels = np.asarray(fitted, dtype=np.float32)
    if not raw:
        pixels = (pixels / np.float32(255) - mean) / deviation
    return np.ascontiguousarray((pixels if last else pixels.transpose(2, 0, 1))[None], dtype=np.float32)


def _check_names(names: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    if sorted(names) != sorted(shapes):
        raise CalibrationError(f"{where} names {', '.join(sorted(names))}; the model's inputs are {', '.join(shapes)}")


def _check_array(name: str, dtype: np.dtype[Any], found: tuple[int, ...], shape: tuple[int, ...], where: str) -> None:
    if dtype.kind not in "fiu" or not found or found[1:] != shape[1:] or not found[0]:
        raise CalibrationError(f"{where}: '{name}' is {dtype} {list(found)}; needed is [N, {str(list(shape[1:]))[1:]}")


def _split(arrays: Mapping[str, npt.NDArray[Any]], shapes: Shapes, where: str) -> list[dict[str, FloatArray]]:
    _check_names(arrays, shapes, where)
    columns: dict[str, FloatArray] = {}
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        if array.shape == shape[1:]:
            array = array[None]
        _check_array(name, array.dtype, array.shape, shape, where)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused
            columns[name] = array.astype(np.float32, copy=False)
        if not np.isfinite(columns[name]).all():
            raise CalibrationError(f"{where}: '{name}' holds NaN or infinity")
    counts = {len(column) for column in columns.values()}
    if len(counts) > 1:
        raise CalibrationError(f"{where} has {sorted(counts)} samples for different inputs")
    return [{name: column[i : i + 1] for name, column in columns.items()} for i in range(counts.pop())]
