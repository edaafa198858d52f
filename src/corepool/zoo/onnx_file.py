"""Assembles ONNX graphs node by node and puts finished models on disk whole or not at all.

It must not know any network or how numbers are chosen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from corepool.errors import ModelError

OPSET = 17
IR_VERSION = 8  # the one that came with opset 17


class GraphWriter:
    """Collects nodes and initialisers; every node has one output, named after the node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initialisers: list[onnx.TensorProto] = []
        self._names: set[str] = set()

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an initialiser and return its name; a name that exists already is left as it is."""
        if name not in self._names:
            self._names.add(name)
            self._initialisers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node called after its output and return the output's name."""
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}/{op}", **attributes))
        return output

    def model(self, source: tuple[str, Sequence[int]], result: tuple[str, Sequence[int]]) -> onnx.ModelProto:
        """The finished model; source and result are (name, shape) of its one float32 input and output."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [helper.make_tensor_value_info(source[0], onnx.TensorProto.FLOAT, list(source[1]))],
            [helper.make_tensor_value_info(result[0], onnx.TensorProto.FLOAT, list(result[1]))],
        )
        while self._initialisers:  # hand over one by one: large networks exist twice only for a moment
            graph.initializer.append(self._initialisers.pop(0))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="corepool")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model to path by way of a temporary file beside it, so that path is never half-written.

    Raises ModelError if the folder is missing or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(model.SerializeToString(deterministic=True))
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
