"""Photos, their preparation and the class names. It must not know any network."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from PIL import Image

from corepool.errors import InputError
from corepool.zoo import labels, photos


@pytest.mark.parametrize("name", photos.names())
def test_photos_are_small_rgb_and_have_a_source(name: str) -> None:
    folder = resources.files(photos.__name__)
    image = photos.load(name)
    assert image.mode == "RGB"
    assert 320 <= max(image.size) <= 480
    assert len(folder.joinpath(f"{name}.jpg").read_bytes()) <= 150_000
    row = next(line for line in folder.joinpath("SOURCES.md").read_text().splitlines() if f"`{name}.jpg`" in line)
    assert "CC0" in row or "public domain" in row


def test_there_are_at_least_four() -> None:
    assert len(photos.names()) >= 4


def test_an_unknown_photo_is_refused() -> None:
    with pytest.raises(InputError, match=r"dog.*cat"):
        photos.load("dog")


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (1000, 224)])
def test_preprocess_cuts_the_centre_and_normalises(size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.broadcast_to(np.linspace(0, 255, width)[np.newaxis, :, np.newaxis], (height, width, 3))
    out = photos.preprocess(Image.fromarray(ramp.astype(np.uint8)))
    assert out.shape == (1, 3, 224, 224)
    assert out.dtype == np.float32
    pixels = out[0] * np.array([0.229, 0.224, 0.225])[:, None, None] + np.array([0.485, 0.456, 0.406])[:, None, None]
    scaled_width = int(256 * width / min(size))
    half = 112 / scaled_width  # share of the ramp to each side of its middle
    np.testing.assert_allclose(pixels[:, 0, 0], 0.5 - half, atol=0.01)
    np.testing.assert_allclose(pixels[:, -1, -1], 0.5 + half, atol=0.01)


def test_normalise_of_plain_colours() -> None:
    out = photos.normalise(Image.new("RGB", (2, 3), (255, 0, 51)))
    assert out.shape == (1, 3, 3, 2)
    np.testing.assert_allclose(out[0, :, 0, 0], [0.515 / 0.229, -0.456 / 0.224, -0.206 / 0.225], rtol=1e-5)


def test_calibration_is_seeded_and_varied() -> None:
    first = photos.calibration(12, seed=1)
    assert first.shape == (12, 3, 224, 224)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, photos.calibration(12, seed=1))
    assert not np.array_equal(first, photos.calibration(12, seed=2))
    assert len({image.tobytes() for image in first}) == 12
    np.testing.assert_array_equal(first[0], photos.preprocess(photos.load(photos.names()[0]))[0])
    assert first.min() >= -2.12
    assert first.max() <= 2.65
    with pytest.raises(InputError, match="at least 1"):
        photos.calibration(0)


def test_class_names() -> None:
    names = labels.imagenet()
    assert len(names) == 1000
    assert all(names)
    assert (names[0], names[285], names[967]) == ("tench", "Egyptian Mau", "espresso")
