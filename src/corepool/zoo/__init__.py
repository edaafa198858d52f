"""Example networks and inputs for demonstrations, tests and measurements.

It must not know how a network is compiled or run. Importing it is cheap: ONNX is loaded when a network is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corepool.errors import ModelError

__all__ = ["Progress", "names", "write"]

Progress = Callable[[int, int], None]  # steps done, steps in all

_QUANTISED = ("vgg16", "resnet50", "inception_v3", "mobilenet_v1")
_FLOAT = ("mobilenet_v2",)


def names() -> list[str]:
    """The networks that ``write`` knows."""
    return [*_QUANTISED, *_FLOAT]


def write(name: str, path: Path, seed: int = 0, progress: Progress | None = None, *, side: int | None = None) -> None:
    """Write a network as an ONNX file with float32 input "input" [1, 3, H, W] and output "logits" [1, 1000].

    mobilenet_v2 is a float network with its trained ImageNet weights (the seed is of no account); the others are
    quantised to INT8 (QDQ) and have weights drawn from the seed. ``progress`` is called with (steps done, steps in
    all) as the work goes on. The file appears whole or not at all; the same seed gives the same bytes on one machine.
    ``side`` makes H and W another multiple of 32 than the network's own (224), for mobilenet_v2 only.

    Raises ModelError for an unknown name, a negative seed, a side that cannot be, missing trained weights or a path
    that cannot be written.
    """
    if name not in names():
        raise ModelError(f"no network called {name!r} in the zoo; there are: {', '.join(names())}")
    if seed < 0:
        raise ModelError(f"the seed of {name} must not be negative, it is {seed}")
    if side is not None and (name not in _FLOAT or side < 32 or side % 32):
        raise ModelError(f"{name} cannot be made for images of side {side}: mobilenet_v2 can, for multiples of 32")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: it must be a file in a folder that exists")
    from corepool.zoo import mobilenet_v2, networks, onnx_file

    steps = mobilenet_v2.STEPS if name in _FLOAT else networks.NETWORKS[name].steps
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    model = mobilenet_v2.create(advance, side or 224) if name in _FLOAT else networks.create(name, seed, advance)
    onnx_file.save(model, path)
