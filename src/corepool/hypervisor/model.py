"""What the hypervisor knows of a model: predicted latency and sizes for every number of cores.

It must not know instructions or how a model computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import IFP_COLUMNS, MAX_CORES
from corepool.config import HardwareConfig
from corepool.errors import ConfigError
from corepool.hypervisor.numbers import wholes

MILLION = 1_000_000


@dataclass(frozen=True)
class Model:
    """A loaded model. Entry ``n - 1`` of a table is for ``n`` cores in as few banks as possible.

    ``latency_ns``: one inference. ``stream_bytes``: all instruction streams together. ``window_bytes``: what it needs
    in each bank, of which ``weight_bytes`` are weights and ``state_bytes`` maps between layers. ``layer_ends``: when
    each layer ends, in millionths of the inference, the last being a million.

    Raises ConfigError unless tables have equal lengths, times are positive and layers end in order.
    """

    name: str
    latency_ns: tuple[int, ...]
    stream_bytes: tuple[int, ...]
    window_bytes: int
    weight_bytes: int = 0
    state_bytes: int = 0
    layer_ends: tuple[int, ...] = (MILLION,)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a model has a name, a text, not {self.name!r}")
        tables, ends = (self.latency_ns, self.stream_bytes), self.layer_ends
        if not all(isinstance(table, tuple) for table in (*tables, ends)):
            raise ConfigError(f"model {self.name!r}: latencies, stream bytes and layer ends are tuples")
        if not self.latency_ns or len(self.latency_ns) != len(self.stream_bytes):
            raise ConfigError(f"model {self.name!r}: tables of latency and stream bytes must have one length, not 0")
        if not wholes(self.latency_ns, 1) or not wholes(self.stream_bytes):
            raise ConfigError(f"model {self.name!r}: latencies must be at least 1 ns and sizes not negative, all whole")
        if not wholes((self.weight_bytes, self.state_bytes)) or not wholes((self.window_bytes,), 1):
            raise ConfigError(f"model {self.name!r}: a window has at least 1 byte, weights and state at least 0")
        if not ends or not wholes(ends) or list(ends) != sorted(ends) or ends[-1] != MILLION:
            raise ConfigError(f"model {self.name!r}: layer ends must grow up to {MILLION}, all whole")

    @property
    def layers(self) -> int:
        return len(self.layer_ends)

    def rest_ns(self, cores: int, first_layer: int = 0) -> int:
        """Predicted time of an inference that begins at ``first_layer``."""
        whole = self.latency_ns[cores - 1]
        if first_layer == 0:
            return whole
        return max(whole * (MILLION - self.layer_ends[first_layer - 1]) // MILLION, 1)

    def with_latency(self, latency_ns: tuple[int, ...]) -> Model:
        """The same model with another latency table, such as a measured one."""
        return replace(self, latency_ns=latency_ns)


def to_ns(cycles: int, config: HardwareConfig) -> int:
    """Cycles as whole nanoseconds, rounded up."""
    return -(-cycles * 1_000_000_000 // config.clock_hz)


def model_of(name: str, package: ModelPackage, config: HardwareConfig) -> Model:
    """What the hypervisor needs to know of a package, with the latency table that the static compiler predicted."""
    from corepool.compiler.dynamic import link  # numba is slow to import; only who links pays

    counts = range(1, min(config.cores, MAX_CORES) + 1)
    linked = [link(package, range(n), config) for n in counts]
    streams = tuple(each.stream_bytes for each in linked)
    window = package.meta["window"]
    dealt = linked[-1].dealt
    spent = np.concatenate([[0], np.cumsum(package.ifps[:, IFP_COLUMNS.index("latency")], dtype=np.int64)])
    by_layer = np.maximum((spent[dealt[:, 1:]] - spent[dealt[:, :-1]]).max(axis=1), 1)
    ends = np.cumsum(by_layer) * MILLION // by_layer.sum()
    return Model(
        name=name,
        latency_ns=tuple(to_ns(int(package.meta["predicted_cycles"][n - 1]), config) for n in counts),
        stream_bytes=streams,
        # Streams stand behind the maps, each at a multiple of 64 bytes.
        window_bytes=max(window["window_bytes"], window["streams_offset"] + max(streams) + 64 * len(streams)),
        weight_bytes=window["weights_bytes"],
        state_bytes=max(window["streams_offset"] - window["weights_bytes"], 0),
        layer_ends=tuple(int(end) for end in ends),
    )
