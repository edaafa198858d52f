"""A network of six layers, drawn from a seed: small enough for hardware that is simulated, and to warm up compilers.

It must not know what it is used for.
"""

from __future__ import annotations

import os
from pathlib import Path

from corepool.files import replacing

SIDE = 20


def small_network(folder: Path, seed: int) -> Path:
    """Write the network as a QDQ model of 20 x 20 pixels; returns its path. Raises OSError."""
    from corepool.zoo.qdq import QdqNetwork

    net = QdqNetwork("small", seed, (SIDE, SIDE), lambda: None)
    first = net.conv(net.input, "first", 8, 3, pad=1)
    deep = net.conv(first, "depthwise", 8, 3, pad=1, groups=8)
    here = net.add(net.conv(deep, "pointwise", 8, 1, activation=None), first, "sum")
    here = net.conv(net.max_pool(here, "pool", 2, 2), "second", 16, 3, pad=1)
    here = net.dense(net.flatten(net.global_average_pool(here, "average"), "flat"), "logits", 10)
    path = folder / f"small-{os.getpid()}.onnx"
    with replacing(path) as file:
        file.write(net.model(here).SerializeToString())
    return path
