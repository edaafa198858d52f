"""The typed content of a model package: tables, instructions, constants and what the host must know.

It must not know how packages are compiled or linked, nor onnx. ``package`` is the container around it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler import package as container
from corepool.compiler.tables import (
    CONSUMER_COLUMNS,
    IDLE,
    IFP_COLUMNS,
    LAYER_COLUMNS,
    MAX_CORES,
    STEP_COLUMNS,
    TILING_COLUMNS,
)
from corepool.config import HardwareConfig
from corepool.errors import PackageError
from corepool.isa.table import ISA_VERSION

_TABLES = {
    "layers": len(LAYER_COLUMNS),
    "choice": MAX_CORES,
    "tilings": len(TILING_COLUMNS),
    "ifps": len(IFP_COLUMNS),
    "steps": len(STEP_COLUMNS),
    "consumers": len(CONSUMER_COLUMNS),
}


@dataclass(frozen=True)
class ModelPackage:
    """A compiled model. Tables are int32 with the columns of ``compiler.tables``; ``code`` is uint64 [n, 4];
    ``weights`` are the bytes
    that go to the beginning of the window; ``tail`` is an ONNX model for the host or empty; ``size`` is that of the
    file in bytes. ``head`` is an ONNX model for the host that makes inputs, or empty.
    """

    meta: dict[str, Any]
    weights: npt.NDArray[np.uint8]
    code: npt.NDArray[np.uint64]
    layers: npt.NDArray[np.int32]
    choice: npt.NDArray[np.int32]
    tilings: npt.NDArray[np.int32]
    ifps: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int32]
    consumers: npt.NDArray[np.int32]
    tail: bytes = b""
    size: int = 0
    head: bytes = b""

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What users of the package make of it once and keep with it."""
        return {}

    @cached_property
    def room(self) -> npt.NDArray[np.int32]:
        """[packages + 1]: at least as many instructions as all packages before each one can have in streams, SYNCs left
        out."""
        # A result may be saved in up to three parts.
        counts = self.steps[:, 1:6].sum(axis=1, dtype=np.int64) + 2 * self.steps[:, 5].astype(np.int64)
        by_step = np.concatenate([[0], np.cumsum(counts)])
        first, last = self.ifps[:, 0], self.ifps[:, 0] + self.ifps[:, 1]
        return np.concatenate([[0], np.cumsum(by_step[last] - by_step[first])]).astype(np.int32)

    @cached_property
    def tiling_bound(self) -> npt.NDArray[np.int64]:
        """For every tiling: at least as many instructions as its packages can have on all cores, SYNCs left out."""
        begin = self.tilings[:, 0]
        bound: npt.NDArray[np.int64] = (self.room[begin + self.tilings[:, 1]] - self.room[begin]).astype(np.int64)
        return bound

    @cached_property
    def largest_tiling(self) -> int:
        """Packages of the layer and tiling that has the most."""
        return int(self.tilings[:, 1].max(initial=0))

    @cached_property
    def stream_bound(self) -> npt.NDArray[np.int64]:
        """For 1 .. 16 cores: at least as many instructions as all streams together can have."""
        chosen = self.tiling_bound[self.layers[:, 0, None] + self.choice % IDLE]
        cores = np.arange(1, MAX_CORES + 1)
        bound: npt.NDArray[np.int64] = chosen.sum(axis=0) + cores * (2 * len(self.layers) + 1)
        return bound

    def save(self, path: Path, config: HardwareConfig) -> None:
        """Write the package for ``config``; nothing is left behind on an error."""
        container.write(path, self._sections(), config)

    def _sections(self) -> dict[str, bytes | npt.NDArray[Any]]:
        text = json.dumps(self.meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
        tables: dict[str, Any] = {name: getattr(self, name) for name in _TABLES}
        head = {"head": self.head} if self.head else {}
        return {"meta": text.encode(), "weights": self.weights, "code": self.code, **tables, "tail": self.tail, **head}

    def _in_order(self) -> bool:
        """Whether each package has steps, its last one is the last of no other package's inner ones, and those of a
        tiling's packages follow each other."""
        first, count = self.ifps[:, 0].astype(np.int64), self.ifps[:, 1]
        behind = first + count
        if not (count >= 1).all():
            return False
        ends = np.zeros(len(self.steps) + 1, np.int64)
        ends[behind] = 1
        before = np.cumsum(ends)
        follows = np.append(True, first[1:] == behind[:-1])[: len(first)]
        follows[self.tilings[self.tilings[:, 1] > 0, 0]] = True
        return bool((before[behind] - before[first] == 1).all() and follows.all())

    @classmethod
    def open(cls, path: Path, config: HardwareConfig | Mapping[str, HardwareConfig] | None = None) -> ModelPackage:
        """Map and check a package. Raises PackageError, or ConfigMismatchError if it was made for another
        configuration than ``config``, or than any of several by name."""
        opened = container.open_package(path, config)
        try:
            meta = json.loads(opened.raw("meta"))
        except ValueError as error:
            raise PackageError(f"{path}: section meta is not JSON: {error}") from None
        tables = {name: opened.array(name) for name in _TABLES}
        made = cls(
            meta=meta,
            weights=opened.array("weights"),
            code=opened.array("code"),
            tail=opened.raw("tail"),
            size=opened.size,
            head=opened.raw("head") if "head" in opened.sections else b"",
            **tables,
        )
        made.check(str(path))
        return made

    def check(self, where: str) -> None:
        """Raise PackageError unless every table has its shape and every index lies inside the table that it points
        into."""

        def require(condition: bool, text: str) -> None:
            if not condition:
                raise PackageError(f"{where}: {text}; compile the model again")

        require(
            isinstance(self.meta, dict) and self.meta.get("isa_version") == ISA_VERSION,
            f"it was not made for instruction set {ISA_VERSION}",
        )
        for name, columns in _TABLES.items():
            table = getattr(self, name)
            require(
                table.ndim == 2 and table.shape[1] == columns and table.dtype == np.int32,
                f"table {name} has a wrong shape",
            )
        require(
            self.code.ndim == 2 and self.code.shape[1] == 4 and self.code.dtype == np.uint64,
            "table code has a wrong shape",
        )
        require(self.weights.ndim == 1 and self.weights.dtype == np.uint8, "the weights are not bytes")
        require(
            len(self.layers) > 0 and len(self.choice) == len(self.layers), "tables layers and choice differ in length"
        )
        ranges = (
            ("layers", self.layers[:, 0], self.layers[:, 1], len(self.tilings)),
            ("layers", self.layers[:, 4], self.layers[:, 5], len(self.consumers)),
            ("tilings", self.tilings[:, 0], self.tilings[:, 1], len(self.ifps)),
            ("ifps", self.ifps[:, 0], self.ifps[:, 1], len(self.steps)),
            ("steps", self.steps[:, 0], self.steps[:, 1:6].sum(axis=1, dtype=np.int64), len(self.code)),
        )
        for name, first, count, limit in ranges:
            inside = (first >= 0) & (count >= 0) & (first.astype(np.int64) + count <= limit)
            require(bool(inside.all()), f"table {name} points outside")
        require(
            bool((self.steps[:, 1:6] >= 0).all() and (self.steps[:, 5] <= 1024).all()),
            "table steps has negative counts",
        )
        require(bool((self.steps[:, 1:6] < 1 << 16).all()), "table steps has more instructions than a step can have")
        require(bool((self.steps[:, 4] >= 1).all()), "table steps has steps that compute nothing")
        require(self._in_order(), "table ifps has packages whose steps do not follow each other")
        room = self.steps[:, STEP_COLUMNS.index("weight_words") :]
        require(bool(((room >= 0) & (room < 1 << 16)).all()), "table steps has groups of impossible size")
        producer = self.layers[:, LAYER_COLUMNS.index("producer")]
        before = (producer >= -1) & (producer < np.arange(len(self.layers)))
        require(bool(before.all()), "table layers has layers that read what is not made yet")
        known = (self.choice >= 0) & (self.choice % IDLE < self.layers[:, 1, None])
        require(bool((known & (self.choice // IDLE <= np.arange(MAX_CORES))).all()), "table choice points outside")
        require(bool(np.isin(self.layers[:, 2], (2, 4)).all()), "table layers has a wrong number of buffers")
        require(
            not len(self.consumers)
            or bool(
                ((self.consumers[:, 0] >= 0) & (self.consumers[:, 0] < len(self.layers))).all()
                and np.isin(self.consumers[:, 1], (0, 1)).all()
            ),
            "table consumers points outside",
        )
        require(bool((self.ifps[:, 2] >= 0).all()), "table ifps has negative latencies")
        require(bool((self.ifps[:, IFP_COLUMNS.index("width")] > 0).all()), "table ifps has maps without width")
        rows = self.ifps[:, 4].astype(np.int64) - self.ifps[:, 3]
        require(bool(((rows > 0) & (rows < 1 << 16)).all()), "table ifps has tiles without rows")
