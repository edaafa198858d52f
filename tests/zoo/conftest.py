"""What the zoo's tests share: counting a graph's work and running it.

It must not know how the zoo builds networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import shape_inference

FloatArray = npt.NDArray[np.float32]


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The static shape of every tensor, initialisers included; inference runs on a copy without the weights' bytes."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    known = {item.name: tuple(item.dims) for item in model.graph.initializer}
    for item in model.graph.initializer:
        light.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    del light.graph.initializer[:]
    inferred = shape_inference.infer_shapes(light, strict_mode=True).graph
    for info in [*inferred.value_info, *inferred.input, *inferred.output]:
        known[info.name] = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
    return known


def _macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and fully connected layers for one image."""
    known, total = _shapes(model), 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = known[node.input[1]]  # [out, in / groups, kernel...]
            total += math.prod(known[node.output[0]]) * math.prod(weight[1:])
    return total


def _logits(path: Path, image: FloatArray) -> FloatArray:
    """What onnxruntime answers to one image."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": image})[0], np.float32)


@pytest.fixture(scope="session")
def shapes() -> Callable[[onnx.ModelProto], dict[str, tuple[int, ...]]]:
    return _shapes


@pytest.fixture(scope="session")
def macs() -> Callable[[onnx.ModelProto], int]:
    return _macs


@pytest.fixture(scope="session")
def logits() -> Callable[[Path, FloatArray], FloatArray]:
    return _logits
