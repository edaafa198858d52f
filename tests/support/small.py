"""A small network, made by hand, for tests of what runs networks, and an input for it.

It must not know ONNX files, nor what the tests look for.
"""

from __future__ import annotations

import numpy as np

from corepool.compiler.static.graph import Conv, Graph, Port, Requant, Tensor


def small_graph(tail: bytes = b"", tail_outputs: tuple[str, ...] = ()) -> Graph:
    """Two convolutions, 3 -> 12 -> 5 channels on 12 x 10 pixels; float32 "image" in, float32 "scores" out."""
    random = np.random.default_rng(7)

    def conv(name: str, source: str, target: str, channels: int, outputs: int) -> Conv:
        return Conv(
            name=name,
            input=source,
            output=target,
            weight=random.integers(-127, 128, (outputs, channels, 3, 3)).astype(np.int8),
            requant=Requant(
                bias=random.integers(-2000, 2000, outputs).astype(np.int32),
                multiplier=np.full(outputs, 40000, np.int64),
                shift=np.full(outputs, 24, np.int64),
                zero_point=3,
            ),
            padding=(1, 1, 1, 1),
            pad_value=-5,
        )

    axes = ((), ("c",), ("h",), ("w",))
    return Graph(
        name="small",
        tensors={
            "x": Tensor("x", 3, 12, 10, 0.05, -5),
            "y": Tensor("y", 12, 12, 10, 0.1, 3),
            "z": Tensor("z", 5, 12, 10, 0.2, 3),
        },
        layers=[conv("first", "x", "y", 3, 12), conv("second", "y", "z", 12, 5)],
        inputs=[Port("image", "x", (1, 3, 12, 10), axes, "float32")],
        outputs=[Port("scores", "z", (1, 5, 12, 10), axes, "float32")],
        tail=tail,
        tail_outputs=tail_outputs,
    )


def small_image(seed: int = 0) -> np.ndarray:
    """Its input: float32 [1, 3, 12, 10]."""
    return np.random.default_rng(seed).normal(0, 3, (1, 3, 12, 10)).astype(np.float32)
