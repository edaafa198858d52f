"""Quantises float models with onnxruntime's quantiser.

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

import onnx

from corepool.compiler.static.frontend.calibration import FloatArray
from corepool.errors import ModelError


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
