"""Writes the golden cases in this folder from a seed: `python tests/cases/make_cases.py`. Each case is a folder of
data:

model.onnx, inputs.npz, outputs.npz (onnxruntime's answer on the quantised model), case.toml (what it is about,
tolerance), and for float models calibration.npz. A case of your own needs no code: add a folder with these files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from corepool.compiler.static.frontend import import_model

HERE = Path(__file__).parent


class Net:
    """Collects nodes and seeded initialisers of one small float network."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, out: int, inp: int, kernel: int, **attributes: object) -> str:
        scale = (inp * kernel * kernel) ** -0.5
        weight = self.rng.standard_normal((out, inp, kernel, kernel)).astype(np.float32) * scale
        bias = self.rng.standard_normal(out).astype(np.float32) * 0.1
        return self.op("Conv", x, self.constant(weight), self.constant(bias), **attributes)

    def model(self, shape: list[int], outputs: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "case",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def stem(net: Net) -> list[str]:
    x = net.op("Relu", net.conv("input", 12, 3, 7, strides=[2, 2], pads=[3, 3, 3, 3]))
    return [net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]


def residual(net: Net) -> list[str]:
    x = net.op("Relu", net.conv("input", 16, 3, 3, pads=[1, 1, 1, 1]))
    y = net.op("Relu", net.conv(x, 8, 16, 1))
    return [net.op("Relu", net.op("Add", net.conv(y, 16, 8, 3, pads=[1, 1, 1, 1]), x))]


def squeeze_excitation(net: Net) -> list[str]:
    x = net.op("HardSwish", net.conv("input", 24, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    y = net.conv(x, 24, 1, 3, group=24, pads=[1, 1, 1, 1])
    s = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 8, 24, 1))
    s = net.op("HardSigmoid", net.conv(s, 24, 8, 1), alpha=1 / 6, beta=0.5)
    return [net.conv(net.op("Mul", y, s), 16, 24, 1)]


def branches(net: Net) -> list[str]:
    x = net.op("Relu", net.conv("input", 16, 3, 3))
    a = net.op("Relu", net.conv(x, 8, 16, 1))
    b = net.op("Relu", net.conv(x, 13, 16, 3, pads=[1, 1, 1, 1]))
    c = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    return [net.op("Concat", a, b, c, axis=1)]


def classifier(net: Net) -> list[str]:
    x = net.op("LeakyRelu", net.conv("input", 20, 3, 5, strides=[3, 3]), alpha=0.1)
    x = net.op("Flatten", x)
    size = 20 * 6 * 6
    weight = net.constant(net.rng.standard_normal((10, size)).astype(np.float32) * size**-0.5)
    return [net.op("Softmax", net.op("Gemm", x, weight, net.constant(np.zeros(10, np.float32)), transB=1), axis=1)]


def groups(net: Net) -> list[str]:
    x = net.op("Relu", net.conv("input", 32, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]))
    return [net.op("Sigmoid", net.conv(x, 32, 8, 3, group=4, dilations=[2, 2], pads=[2, 2, 2, 2]))]


CASES = {
    "stem": (stem, "7x7 convolution of stride 2 on three channels, then pooling: kernel columns are folded"),
    "residual": (residual, "addition on the way out of a convolution"),
    "squeeze_excitation": (squeeze_excitation, "depthwise, tables, and a map times a vector"),
    "branches": (branches, "concatenation at a channel that is no multiple of 8; pooling that leaves padding out"),
    "classifier": (classifier, "fully connected layer, and Softmax on the host"),
    "groups": (groups, "grouped and dilated convolution with automatic padding"),
}
FLOAT = ("squeeze_excitation", "classifier")  # kept as float models with calibration data


def write(name: str, seed: int) -> None:
    """One case; the quantised model is onnxruntime's own, and so are the expected outputs."""
    make, about = CASES[name]
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    net = Net(seed)
    model = net.model([1, 3, 22, 22], make(net))
    rng = np.random.default_rng(seed + 100)
    samples = rng.standard_normal((4, 3, 22, 22)).astype(np.float32)
    path = folder / "model.onnx"
    onnx.save(model, path)
    quantised = import_model(path, {"input": samples}).qdq_model
    if name in FLOAT:
        np.savez_compressed(folder / "calibration.npz", input=samples)
    else:
        onnx.save(quantised, path)
    image = rng.standard_normal((1, 3, 22, 22)).astype(np.float32)
    np.savez_compressed(folder / "inputs.npz", input=image)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(quantised.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"input": image}), strict=True))
    np.savez_compressed(folder / "outputs.npz", **outputs)
    lines = (f'about = "{about}"', 'configs = ["u200", "tiny"]', "cores = [1, 3, 16]  # as far as there are so many")
    text = "\n".join(lines) + "\n"
    (folder / "case.toml").write_text(text + "steps = 2  # tolerance, in quantisation steps of the output\n")


if __name__ == "__main__":
    for number, case in enumerate(CASES):
        write(case, number)
