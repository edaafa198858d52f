"""Runs what is left of a network after the device, on the host. The only user of onnxruntime here; loaded when needed.

It must not know devices or packages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import PackageError

_KINDS = {"float": "float32", "double": "float64"}  # where onnxruntime's names of types are others than numpy's


class Tail:
    """An ONNX model (bytes) fed with a device's outputs by name. Raises PackageError if it cannot be loaded."""

    def __init__(self, model: bytes, outputs: Sequence[str]) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a few small operators: threads would cost more than they bring
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base below this
            raise PackageError(f"the host's part of the network cannot be loaded: {error}") from None
        self._outputs = list(outputs)
        shown = {value.name: value for value in self._session.get_outputs()}
        missing = [name for name in self._outputs if name not in shown]
        if missing:
            raise PackageError(f"the host's part of the network does not make {', '.join(missing)}: compile it again")
        kinds = {name: value.type.removeprefix("tensor(").removesuffix(")") for name, value in shown.items()}
        # Name, type and shape; sizes that only running tells are names or None.
        self.makes = [(name, _KINDS.get(kinds[name], kinds[name]), list(shown[name].shape)) for name in self._outputs]
        self.reads = {value.name for value in self._session.get_inputs()}

    def run(self, ports: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name, for the device's outputs by name (those that the tail does not read may be there)."""
        made = self._session.run(self._outputs, {name: value for name, value in ports.items() if name in self.reads})
        return {name: np.asarray(value) for name, value in zip(self._outputs, made, strict=True)}
