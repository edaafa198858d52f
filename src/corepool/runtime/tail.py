"""Runs a network's first and last steps on the host. The only user of onnxruntime here; loaded when needed.

It must not know devices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.model import ModelPackage
from corepool.errors import InputError, PackageError, first_line
from corepool.runtime.host import Feed, HostPort, check_inputs

_KINDS = {"float": "float32", "double": "float64"}  # where onnxruntime's names of types are others than numpy's


class Tail:
    """An ONNX model (bytes) fed with arrays by name: a device's outputs, or a user's inputs. Raises PackageError if it
    cannot be loaded."""

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
        """The outputs by name, for what it reads by name (more may be there). Raises InputError if they cannot be
        computed."""
        fed = {name: value for name, value in ports.items() if name in self.reads}
        try:
            made = self._session.run(self._outputs, fed)
        except Exception as error:  # its exceptions have no common base below this
            raise InputError(
                f"the steps of the network that the host computes cannot take these inputs: {first_line(error)}"
            ) from None
        return {name: np.asarray(value) for name, value in zip(self._outputs, made, strict=True)}


@dataclass(frozen=True)
class HostSteps:
    """What a package leaves to the host: ``head`` makes inputs of the device of what users send (``feeds``), ``tail``
    makes outputs of what the device leaves. ``passed``: feeds that are inputs of the device as they are."""

    feeds: tuple[Feed, ...] = ()
    passed: frozenset[str] = frozenset()
    head: Tail | None = None
    tail: Tail | None = None

    @classmethod
    def of(cls, package: ModelPackage) -> HostSteps:
        """Load them. Raises PackageError."""
        meta = package.meta
        tail = Tail(package.tail, meta["tail_outputs"]) if package.tail else None
        if not package.head:
            return cls(tail=tail)
        feeds = tuple(Feed.from_meta(entry) for entry in meta.get("head_inputs", ()))
        known, wanted = frozenset(feed.name for feed in feeds), [str(entry["name"]) for entry in meta["inputs"]]
        head = Tail(package.head, [name for name in wanted if name not in known])
        if not head.reads <= known:
            raise PackageError("the host's first steps read what nobody sends: compile the model again")
        return cls(feeds, known & set(wanted), head, tail)

    def first(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays for the device's inputs, for those of a user. Raises InputError."""
        if self.head is None:
            return inputs
        check_inputs(self.feeds, inputs)
        kept = {name: array for name, array in inputs.items() if name in self.passed}
        return {**kept, **self.head.run(inputs)}


def users_inputs(package: ModelPackage, block: int) -> list[Feed | HostPort]:
    """What users send. Raises PackageError."""
    if package.head:
        return [Feed.from_meta(entry) for entry in package.meta.get("head_inputs", ())]
    return [HostPort.from_meta(entry, block) for entry in package.meta["inputs"]]
