"""A float network that takes a camera's bytes, with operators at both ends that the cores lack.

It must not know who compiles or serves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def picture_model(path: Path) -> Path:
    """A float network as a camera's user would export it: bytes in, [1, H, W, 3]; half as large by Resize first."""
    rng = np.random.default_rng(7)
    weights = {
        "scales": np.array([1, 0.5, 0.5, 1], np.float32),
        "divisor": np.float32(255),
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 5,
        "w2": rng.normal(size=(6, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["photo"], ["real"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Resize", ["real", "", "scales"], ["small"], mode="linear", name="resize"),
        helper.make_node("Div", ["small", "divisor"], ["unit"], name="div"),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2], name="transpose"),
        helper.make_node("Conv", ["planes", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2"], ["s"], transB=1, name="gemm"),
        helper.make_node("Exp", ["s"], ["e"], name="exp"),
        helper.make_node("ReduceSum", ["e", "axis"], ["sum"], name="sum"),
        helper.make_node("Div", ["e", "sum"], ["p"], name="share"),
    ]
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes, "camera",
        [helper.make_tensor_value_info("photo", TensorProto.UINT8, ["N", 24, 20, 3])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 6])],
        constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def photos(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 20, 3)).astype(np.uint8)
