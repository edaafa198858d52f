"""Photos as input tensors of networks for ImageNet.

It must not know servers or models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def picture(file: Path, side: int = 224) -> npt.NDArray[np.float32]:
    """A photo as [1, 3, side, side], scaled, cut and normalised as for ImageNet. Raises InputError."""
    from PIL import Image, UnidentifiedImageError

    from corepool.zoo import photos

    if file.is_dir():
        raise InputError(f"{file} is a folder, not a photo")
    try:
        with Image.open(file) as image:
            made: npt.NDArray[np.float32] = photos.preprocess(image.convert("RGB"), side)
            return made
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{file} is no photo that can be read: {' '.join(str(error).split())}") from None


def best(values: npt.NDArray[Any], count: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of one vector of 1000 scores: index, label, probability if they are logits."""
    from corepool.zoo.labels import imagenet

    scores = np.asarray(values, np.float64).reshape(-1)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    if scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3:  # softmax was applied already
        shares = scores
    names = imagenet() if scores.size == 1000 else [str(index) for index in range(scores.size)]
    order = np.argsort(-scores, kind="stable")[:count]
    return [{"class": int(index), "label": names[index], "probability": float(shares[index])} for index in order]
