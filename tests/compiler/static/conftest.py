"""A small writer of QDQ models, and the comparison of what is imported from them with onnxruntime.

It must not know the frontend's inner parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool.compiler.static import reference
from corepool.compiler.static.compare import layer_differences
from corepool.compiler.static.frontend import Imported, import_model
from corepool.compiler.static.ort import onnxruntime

Array = np.ndarray[Any, Any]


class Net:
    """Builds one model. Values are named by strings; scales are taken from what a random input makes of them."""

    def __init__(self, rng: np.random.Generator, path: Path, opset: int = 13) -> None:
        self.rng, self.path, self.opset = rng, path, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.samples: dict[str, Array] = {}
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def const(self, array: Any, stem: str = "c") -> str:
        name = self.name(stem)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        names = [self.name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.name(f"node_{op}"), **attributes))
        return names[0]

    def raw_input(self, shape: Sequence[int], spread: float = 2.0) -> str:
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        shift = self.rng.uniform(-1, 1)
        self.samples[name] = (self.rng.normal(size=shape) * spread + shift).astype(np.float32)
        return name

    def input(self, shape: Sequence[int], dtype: str | None = None, spread: float = 2.0) -> str:
        return self.q(self.raw_input(shape, spread), dtype)

    def value(self, name: str) -> Array:
        """What a value is for the sample input."""
        model = self.model([name])
        session = onnxruntime.InferenceSession(model.SerializeToString(), _options())
        wanted = {value.name for value in session.get_inputs()}
        return session.run([name], {k: v for k, v in self.samples.items() if k in wanted})[0]  # type: ignore[no-any-return]

    def q(self, value: str, dtype: str | None = None, scale: float | None = None, zero: int | None = None) -> str:
        """QuantizeLinear and DequantizeLinear."""
        kind = np.dtype(dtype or str(self.rng.choice(["int8", "uint8"])))
        low_code = np.iinfo(kind).min
        if scale is None:
            sample = self.value(value)
            low, high = min(0.0, float(sample.min())), max(0.0, float(sample.max()))
            scale = max(high - low, 1e-3) / 255 * float(self.rng.uniform(0.7, 1.1))  # some values saturate
            zero = int(np.clip(round(low_code - low / scale), low_code, low_code + 255))
        pair = [self.const(np.float32(scale), "scale"), self.const(np.array(zero, dtype=kind), "zero")]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [value, *pair]), *pair])

    def weight(self, shape: Sequence[int], axis: int | None = 0, dtype: str = "int8") -> str:
        """Constant codes with a DequantizeLinear; one scale per entry of ``axis``, or one in all (None)."""
        codes = self.rng.integers(-127, 128, size=shape)
        scales = self.rng.uniform(0.5, 2, size=() if axis is None else shape[axis]) / np.sqrt(np.prod(shape[1:])) / 64
        zero = 128 if dtype == "uint8" else 0
        inputs = [
            self.const((codes + zero).astype(dtype), "w"),
            self.const(scales.astype(np.float32), "scale"),
            self.const(np.full(scales.shape, zero, dtype=dtype), "zero"),
        ]
        return self.op("DequantizeLinear", inputs, **({} if axis is None else {"axis": axis}))

    def bias(self, count: int, style: str) -> str:
        """A bias as float constant or as int32 codes."""
        if style == "float":
            return self.const(self.rng.normal(size=count).astype(np.float32), "b")
        codes = self.const(self.rng.integers(-3000, 3000, size=count).astype(np.int32), "b")
        scales = self.const(self.rng.uniform(0.5, 1.5, size=count).astype(np.float32) / 1500, "scale")
        return self.op("DequantizeLinear", [codes, scales], axis=0)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, values, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)

    def save(self, *outputs: str) -> Path:
        onnx.save(self.model(outputs), self.path)
        return self.path

    def check(self, *outputs: str, steps: int = 1, **options: Any) -> Imported:
        """Imports the model and compares it with onnxruntime: each layer within a step, outputs within ``steps``."""
        imported = import_model(self.save(*outputs), **options)
        graph = imported.graph
        for trial in range(2):
            inputs = dict(self.samples)
            if trial:
                inputs = {name: (self.rng.normal(size=a.shape) * 3).astype(np.float32) for name, a in inputs.items()}
            differences = layer_differences(graph, imported.qdq_model, inputs)
            assert max(differences.values(), default=0) <= 1, differences
            mine = reference.outputs(graph, reference.execute(graph, inputs))
            session = onnxruntime.InferenceSession(imported.qdq_model.SerializeToString(), _options())
            theirs = dict(zip(outputs, session.run(list(outputs), inputs), strict=True))
            assert mine.keys() == theirs.keys()
            compared = len(differences)
            scales = {port.name: graph.tensors[port.tensor].scale for port in graph.outputs}
            for name, expected in theirs.items():
                assert mine[name].shape == expected.shape
                assert mine[name].dtype == expected.dtype
                if name in scales and expected.dtype == np.float32:
                    assert np.abs(mine[name] - expected).max() <= (steps + 0.01) * scales[name], name
                    compared += 1
            assert compared, "nothing could be compared"
        return imported


def _options() -> onnxruntime.SessionOptions:
    """onnxruntime as it computes without its graph optimisations: in float32, each Q and DQ as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


@pytest.fixture
def new_net(tmp_path: Path) -> Callable[..., Net]:
    def make(seed: int = 0, **options: Any) -> Net:
        return Net(np.random.default_rng(seed), tmp_path / "net.onnx", **options)

    return make
