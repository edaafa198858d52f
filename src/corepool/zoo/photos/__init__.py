"""A handful of real, freely licensed photos, and how to make network inputs of them. SOURCES.md names their origin.

It must not know networks, quantisation or the compiler.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FloatArray = npt.NDArray[np.float32]

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, per channel, on the scale 0..1
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_SIDE = 224
_SHORT_SIDE = 256  # shorter side before the centre is cut out, as torchvision evaluates


def names() -> list[str]:
    """The photos that come with the package, in alphabetical order."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".jpg") for name in files if name.endswith(".jpg"))


def load(name: str) -> Image:
    """Return a photo as an RGB image of 400 to 480 pixels; raises InputError, listing the names, if there is none."""
    from PIL import Image

    if name not in names():
        raise InputError(f"no photo called {name!r}; there are: {', '.join(names())}")
    with resources.files(__name__).joinpath(f"{name}.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")


def normalise(image: Image) -> FloatArray:
    """Return an RGB image of any size as [1, 3, H, W] with ImageNet's mean and deviation taken out."""
    pixels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - _MEAN) / _DEVIATION).transpose(2, 0, 1)[np.newaxis])


def preprocess(image: Image, side: int = _SIDE) -> FloatArray:
    """Return [1, 3, side, side] as torchvision evaluates: shorter side to 256 (bilinear), centre of 224, normalised.

    For another side than 224 everything is scaled alike.
    """
    from PIL import Image as pil

    width, height = image.size
    short = min(width, height)
    wanted = _SHORT_SIDE * side // _SIDE
    size = (int(wanted * width / short), int(wanted * height / short))
    scaled = image.convert("RGB").resize(size, pil.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return normalise(scaled.crop((left, top, left + side, top + side)))


def calibration(count: int = 32, seed: int = 0, image_side: int = _SIDE) -> FloatArray:
    """Return [count, 3, side, side]: the photos in turn, each cut at random (half mirrored), fixed by the seed.

    The first image of each photo is its plain preprocess, so that ranges cover what evaluation sees.
    Raises InputError if count is less than 1.
    """
    from PIL import Image as pil

    if count < 1:
        raise InputError(f"a calibration set needs at least 1 image, not {count}")
    random = np.random.default_rng(seed)
    pictures = [load(name) for name in names()]
    batch = np.empty((count, 3, image_side, image_side), np.float32)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        if index < len(pictures):
            batch[index] = preprocess(picture, image_side)[0]
            continue
        side = int(min(picture.size) * random.uniform(0.5, 1.0))
        left = int(random.integers(0, picture.width - side + 1))
        top = int(random.integers(0, picture.height - side + 1))
        cut = picture.resize((image_side, image_side), pil.Resampling.BILINEAR, (left, top, left + side, top + side))
        if random.random() < 0.5:
            cut = cut.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
        batch[index] = normalise(cut)[0]
    return batch
