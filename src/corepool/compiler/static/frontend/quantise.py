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

import numpy as np
import onnx
from onnx import helper, numpy_helper

from corepool.compiler.static.frontend.calibration import FloatArray
from corepool.compiler.static.frontend.context import own_scale
from corepool.errors import ModelError, first_line


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
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, FloatArray]],
    operators: Sequence[str],
    left_out: Sequence[str] = (),
) -> onnx.ModelProto:
    """A QDQ model: int8 activations with zero points from minima and maxima, symmetric int8 weights per output channel.

    ``operators`` are the operator types to quantise, ``left_out`` nodes that stay as they are. Raises
    ModelError if onnxruntime cannot run or quantise the model.
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
                nodes_to_exclude=list(left_out),
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
            quantised = onnx.load(target)
        except Exception as error:  # whatever the quantiser meets, it is the model that it cannot handle
            raise ModelError(f"onnxruntime cannot quantise the model: {first_line(error)}") from None
    _quantise_inputs(quantised, samples)
    return quantised


def _quantise_inputs(model: onnx.ModelProto, samples: Sequence[Mapping[str, FloatArray]]) -> None:
    """Gives Q and DQ to graph inputs that onnxruntime left as they were: those read by Relu, Clip or MaxPool, say."""
    graph = model.graph
    for value in graph.input:
        if value.name not in samples[0]:
            continue
        readers = [node for node in graph.node if value.name in node.input]
        bare = [node for node in readers if node.op_type != "QuantizeLinear"]
        if not bare:
            continue
        given = next((node for node in readers if node.op_type == "QuantizeLinear"), None)
        names = [f"{value.name}/{part}" for part in ("scale", "zero_point", "codes", "quantised")]
        if given is None:
            low = min(0.0, *(float(sample[value.name].min()) for sample in samples))
            high = max(0.0, *(float(sample[value.name].max()) for sample in samples))
            scale, zero = own_scale(low, high)
            graph.initializer.append(numpy_helper.from_array(np.asarray(scale, dtype=np.float32), names[0]))
            graph.initializer.append(numpy_helper.from_array(np.asarray(zero, dtype=np.int8), names[1]))
        else:
            names[:2] = given.input[1:3]  # one input has one scale
        for node in bare:
            for i, name in enumerate(node.input):
                if name == value.name:
                    node.input[i] = names[3]
        pair = [
            helper.make_node("QuantizeLinear", [value.name, *names[:2]], [names[2]], name=f"{value.name}/quantise"),
            helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]], name=f"{value.name}/dequantise"),
        ]
        nodes = [*pair, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
