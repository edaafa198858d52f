"""Quantises float models with onnxruntime's quantiser; reads the calibration data that it needs.

It must not know the layer graph.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from corepool.errors import CalibrationError, ModelError

FloatArray = npt.NDArray[np.float32]
Calibration: TypeAlias = Mapping[str, npt.NDArray[Any]] | Path | str
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pictures as calibration data
_PICTURES = (".png", ".jpg", ".jpeg")


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's inputs (constants left out) by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in constants
    }


def read_calibration(source: Calibration | None, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, FloatArray]]:
    """Calibration samples, one dict of float32 arrays (batch 1) each.

    ``source`` maps input names to arrays [N, ...], or is a .npz file of such, a .npy file, or a folder of .npy, .npz,
    .png and .jpg files (pictures are cut to the input's size and normalised as ImageNet's). Raises CalibrationError.
    """
    if source is None:
        raise CalibrationError(
            "the model is float: quantising it needs calibration data (a folder of .npy, .npz, .png or .jpg files, or"
            f" a .npz file with inputs {', '.join(shapes)})"
        )
    if isinstance(source, Mapping):
        samples = _split(dict(source), shapes, "the calibration data")
    else:
        path = Path(source)
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        samples = [sample for file in files for sample in _read_file(file, shapes)]
    if not samples:
        raise CalibrationError(f"no calibration data in {source}: it needs .npy, .npz, .png or .jpg files")
    return samples


def _read_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, FloatArray]]:
    kind = path.suffix.lower()
    try:
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _split({name: arrays[name] for name in arrays.files}, shapes, str(path))
        if kind in (".npy", *_PICTURES):
            if len(shapes) > 1:
                raise CalibrationError(
                    f"{path}: the model has inputs {', '.join(shapes)}; use .npz files that name them"
                )
            name, shape = next(iter(shapes.items()))
            array = np.load(path, allow_pickle=False) if kind == ".npy" else read_picture(path, shape)
            return _split({name: array}, shapes, str(path))
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{path}: cannot be read as calibration data: {error}") from None
    return []


def read_picture(path: Path, shape: tuple[int, ...]) -> FloatArray:
    """A picture as float32 of ``shape`` [1, 3, H, W] or [1, H, W, 3], normalised; ValueError for other shapes."""
    from PIL import Image, ImageOps

    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(f"pictures do not fit an input of shape {list(shape)}; use .npy or .npz files")
    height, width = shape[1:3] if last else shape[2:4]
    with Image.open(path) as picture:
        fitted = ImageOps.fit(picture.convert("RGB"), (width, height))
    mean, deviation = np.array(MEAN, dtype=np.float32), np.array(DEVIATION, dtype=np.float32)
    pixels = (np.asarray(fitted, dtype=np.float32) / np.float32(255) - mean) / deviation
    return np.ascontiguousarray((pixels if last else pixels.transpose(2, 0, 1))[None], dtype=np.float32)


def _split(
    arrays: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], where: str
) -> list[dict[str, FloatArray]]:
    if sorted(arrays) != sorted(shapes):
        raise CalibrationError(f"{where} names {', '.join(sorted(arrays))}; the model's inputs are {', '.join(shapes)}")
    columns: dict[str, FloatArray] = {}
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        if array.shape == shape[1:]:
            array = array[None]
        if array.dtype.kind not in "fiu" or array.shape[1:] != shape[1:] or not len(array):
            raise CalibrationError(
                f"{where}: '{name}' is {array.dtype} {list(array.shape)}; needed is [N, {str(list(shape[1:]))[1:]}"
            )
        columns[name] = array.astype(np.float32)
        if not np.isfinite(columns[name]).all():
            raise CalibrationError(f"{where}: '{name}' holds NaN or infinity")
    counts = {len(column) for column in columns.values()}
    if len(counts) > 1:
        raise CalibrationError(f"{where} has {sorted(counts)} samples for different inputs")
    return [{name: column[i : i + 1] for name, column in columns.items()} for i in range(counts.pop())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantiser's log, prints and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantise_model(
    model: onnx.ModelProto, samples: Sequence[Mapping[str, FloatArray]], operators: Sequence[str]
) -> onnx.ModelProto:
    """A QDQ model: int8 activations with zero points from minima and maxima, symmetric int8 weights per output channel.

    ``operators`` are the operator types to quantise. Raises ModelError if onnxruntime cannot run or quantise the model.
    """
    from corepool.compiler.static.ort import onnxruntime  # noqa: F401  # first: it sets how it loads
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType  # isort: skip
    from onnxruntime.quantization import quantize_static  # isort: skip

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(samples)

        def get_next(self) -> Mapping[str, FloatArray] | None:
            return next(self.samples, None)

    with tempfile.TemporaryDirectory(prefix="corepool-") as folder, _quiet():
        target = Path(folder) / "qdq.onnx"
        try:
            quantize_static(
                model,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(operators),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": False,
                    "WeightSymmetric": True,
                    "QDQKeepRemovableActivations": False,
                },
            )
            return onnx.load(target)
        except Exception as error:  # whatever the quantiser meets, it is the model that it cannot handle
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"onnxruntime cannot quantise the model: {lines[0]}") from None
