"""The layer lists of VGG16, ResNet50, Inception v3 and MobileNet v1, true in every shape.

It must not know how weights are drawn, quantised or written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from corepool.zoo.qdq import Map, QdqNetwork

_CLASSES = 1000
_LOGIT_DEVIATION = 3.0  # wide enough that classes stand apart


def _classify(net: QdqNetwork, x: Map) -> Map:
    return net.dense(x, "classifier", _CLASSES, gain=_LOGIT_DEVIATION)


def _pooled(net: QdqNetwork, x: Map) -> Map:
    return _classify(net, net.flatten(net.global_average_pool(x, "pool"), "flatten"))


def vgg16(net: QdqNetwork) -> Map:
    """Configuration D of the VGG paper, for 224 x 224."""
    x = net.input
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for index in range(1, count + 1):
            x = net.conv(x, f"conv{stage}_{index}", width, 3, pad=1)
        x = net.max_pool(x, f"pool{stage}", 2, 2)
    x = net.flatten(x, "flatten")
    for name in ("fc6", "fc7"):
        x = net.dense(x, name, 4096, activation="relu")
    return _classify(net, x)


def _bottleneck(net: QdqNetwork, x: Map, name: str, width: int, stride: int) -> Map:
    """Stride in the 3x3 convolution, as torchvision and the 1.5 variant have it."""
    y = net.conv(x, f"{name}.conv1", width, 1)
    y = net.conv(y, f"{name}.conv2", width, 3, stride=stride, pad=1)
    y = net.conv(y, f"{name}.conv3", 4 * width, 1, activation=None, gain=0.5)
    if x.channels != 4 * width:
        x = net.conv(x, f"{name}.downsample", 4 * width, 1, stride=stride, activation=None)
    return net.add(y, x, f"{name}.add")


def resnet50(net: QdqNetwork) -> Map:
    """ResNet50 v1.5, for 224 x 224."""
    x = net.conv(net.input, "conv1", 64, 7, stride=2, pad=3)
    x = net.max_pool(x, "maxpool", 3, 2, 1)
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for index in range(count):
            x = _bottleneck(net, x, f"layer{stage}.{index}", width, 2 if stage > 1 and index == 0 else 1)
    return _pooled(net, x)


def _inception_a(net: QdqNetwork, x: Map, name: str, pool_features: int) -> Map:
    one = net.conv(x, f"{name}.1x1", 64, 1)
    five = net.conv(net.conv(x, f"{name}.5x5_1", 48, 1), f"{name}.5x5_2", 64, 5, pad=2)
    three = net.conv(net.conv(x, f"{name}.3x3dbl_1", 64, 1), f"{name}.3x3dbl_2", 96, 3, pad=1)
    three = net.conv(three, f"{name}.3x3dbl_3", 96, 3, pad=1)
    pool = net.conv(net.average_pool(x, f"{name}.average", 3, 1, 1), f"{name}.pool", pool_features, 1)
    return net.concat([one, five, three, pool], f"{name}.concat")


def _inception_b(net: QdqNetwork, x: Map, name: str) -> Map:
    three = net.conv(x, f"{name}.3x3", 384, 3, stride=2)
    double = net.conv(net.conv(x, f"{name}.3x3dbl_1", 64, 1), f"{name}.3x3dbl_2", 96, 3, pad=1)
    double = net.conv(double, f"{name}.3x3dbl_3", 96, 3, stride=2)
    return net.concat([three, double, net.max_pool(x, f"{name}.maximum", 3, 2)], f"{name}.concat")


def _long(net: QdqNetwork, x: Map, name: str, widths: tuple[int, ...], *, wide_first: bool) -> Map:
    """Kernels of 1x7 and 7x1 in turn."""
    wide = wide_first
    for index, width in enumerate(widths, 2):
        kernel, pad = ((1, 7), (0, 3)) if wide else ((7, 1), (3, 0))
        x = net.conv(x, f"{name}_{index}", width, kernel, pad=pad)
        wide = not wide
    return x


def _inception_c(net: QdqNetwork, x: Map, name: str, width: int) -> Map:
    one = net.conv(x, f"{name}.1x1", 192, 1)
    seven = net.conv(x, f"{name}.7x7_1", width, 1)
    seven = _long(net, seven, f"{name}.7x7", (width, 192), wide_first=True)
    double = net.conv(x, f"{name}.7x7dbl_1", width, 1)
    double = _long(net, double, f"{name}.7x7dbl", (width, width, width, 192), wide_first=False)
    pool = net.conv(net.average_pool(x, f"{name}.average", 3, 1, 1), f"{name}.pool", 192, 1)
    return net.concat([one, seven, double, pool], f"{name}.concat")


def _inception_d(net: QdqNetwork, x: Map, name: str) -> Map:
    three = net.conv(net.conv(x, f"{name}.3x3_1", 192, 1), f"{name}.3x3_2", 320, 3, stride=2)
    seven = net.conv(x, f"{name}.7x7x3_1", 192, 1)
    seven = _long(net, seven, f"{name}.7x7x3", (192, 192), wide_first=True)
    seven = net.conv(seven, f"{name}.7x7x3_4", 192, 3, stride=2)
    return net.concat([three, seven, net.max_pool(x, f"{name}.maximum", 3, 2)], f"{name}.concat")


def _fork(net: QdqNetwork, x: Map, name: str) -> Map:
    flat = net.conv(x, f"{name}a", 384, (1, 3), pad=(0, 1))
    tall = net.conv(x, f"{name}b", 384, (3, 1), pad=(1, 0))
    return net.concat([flat, tall], f"{name}.concat")


def _inception_e(net: QdqNetwork, x: Map, name: str) -> Map:
    one = net.conv(x, f"{name}.1x1", 320, 1)
    three = _fork(net, net.conv(x, f"{name}.3x3_1", 384, 1), f"{name}.3x3_2")
    double = net.conv(net.conv(x, f"{name}.3x3dbl_1", 448, 1), f"{name}.3x3dbl_2", 384, 3, pad=1)
    double = _fork(net, double, f"{name}.3x3dbl_3")
    pool = net.conv(net.average_pool(x, f"{name}.average", 3, 1, 1), f"{name}.pool", 192, 1)
    return net.concat([one, three, double, pool], f"{name}.concat")


def inception_v3(net: QdqNetwork) -> Map:
    """Inception v3 as torchvision has it, without the auxiliary classifier, for 299 x 299."""
    x = net.conv(net.input, "1a", 32, 3, stride=2)
    x = net.conv(net.conv(x, "2a", 32, 3), "2b", 64, 3, pad=1)
    x = net.max_pool(x, "maxpool1", 3, 2)
    x = net.conv(net.conv(x, "3b", 80, 1), "4a", 192, 3)
    x = net.max_pool(x, "maxpool2", 3, 2)
    for name, features in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = _inception_a(net, x, name, features)
    x = _inception_b(net, x, "6a")
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = _inception_c(net, x, name, width)
    x = _inception_d(net, x, "7a")
    for name in ("7b", "7c"):
        x = _inception_e(net, x, name)
    return _pooled(net, x)


def mobilenet_v1(net: QdqNetwork) -> Map:
    """MobileNet v1 of width 1.0, for 224 x 224."""
    x = net.conv(net.input, "conv0", 32, 3, stride=2, pad=1, activation="relu6")
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for index, (width, stride) in enumerate(plan, 1):
        x = net.conv(
            x, f"depthwise{index}", x.channels, 3, stride=stride, pad=1, groups=x.channels, activation="relu6", gain=2.0
        )
        x = net.conv(x, f"pointwise{index}", width, 1, activation="relu6", gain=2.0)
    return _pooled(net, x)


@dataclass(frozen=True)
class Network:
    """How to build a network: its layers, the side of its square input, and how many layers have weights."""

    layers: Callable[[QdqNetwork], Map]
    side: int
    steps: int


NETWORKS = {
    "vgg16": Network(vgg16, 224, 16),
    "resnet50": Network(resnet50, 224, 54),
    "inception_v3": Network(inception_v3, 299, 95),
    "mobilenet_v1": Network(mobilenet_v1, 224, 28),
}


def create(name: str, seed: int = 0, advance: Callable[[], None] = lambda: None) -> onnx.ModelProto:
    """Build a network with weights drawn from the seed; advance is called after each layer that has weights."""
    network = NETWORKS[name]
    net = QdqNetwork(name, seed, (network.side, network.side), advance)
    return net.model(network.layers(net))
