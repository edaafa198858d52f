"""The hardware configuration: what a user asks for, what follows from it, and every cross-check, in one place.

It must not know instructions, networks or devices. Everything that depends on the machine's size reads it from here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

from corepool.errors import ConfigError


@dataclass(frozen=True)
class DdrConfig:
    """Timing of one DDR channel (bank) as the pool sees it; all times in pool clock cycles.

    A *line* is what the bank moves in one cycle. Cycles are dealt to the cores of the bank in turn (slots); of every
    ``period_rounds`` rounds only the first ``active_rounds`` move data, which models refresh, row misses and bus
    turnarounds.
    """

    line_bytes: int = 64  # 512-bit user interface of a 64-bit DDR4-2400 controller at 300 MHz: 19.2 GB/s
    active_rounds: int = (
        3  # 3 of 4 rounds: 75% of the peak, what mixed read and write streams reach on such controllers
    )
    period_rounds: int = 4
    read_latency: int = 60  # 200 ns: DDR4 tRCD + CL (about 30 ns) plus controller, clock crossing and interconnect
    write_latency: int = 30  # until the controller has accepted and acknowledged the last beat of a burst


@dataclass(frozen=True)
class HardwareConfig:
    """Everything that may be chosen about a pool. Sizes in bytes are per core. Immutable and checked at construction.

    Raises ConfigError with the offending value.
    """

    name: str
    cores: int = 16
    banks: int = 4
    pixels: int = 4  # output pixels that the array works on at once
    channels: int = 8  # input and output channels of the array; also the channel block of feature maps
    clock_hz: int = 300_000_000
    feature_bytes: int = 256 * 1024
    weight_bytes: int = 128 * 1024
    result_bytes: int = 32 * 1024
    parameter_bytes: int = 16 * 1024
    lut_slots: int = 2
    queue_depth: int = 16  # instructions per unit queue
    fetch_depth: int = 64  # instructions of the fetch buffer
    fetch_burst_bytes: int = 512
    burst_bytes: int = (
        1024  # longest data burst: 64 beats of 16 bytes; never crosses a multiple of itself, so never 4 KiB
    )
    load_outstanding: int = 8  # bursts requested but not yet complete
    save_buffers: int = 2  # bursts that a core may have pending per destination bank
    setup_cycles: int = 2  # load and save units: from start to the first burst
    compute_latency: int = 20  # pipeline depth: memory read, products, adder tree, requantisation, addition, LUT, write
    sync_cycles: int = 16  # from the last arrival at a SYNC to the release of all cores
    watchdog_cycles: int = 1 << 24  # a lease in which no instruction completes for so long is stopped
    bank_bytes: int = 4 << 30
    ddr: DdrConfig = field(default_factory=DdrConfig)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def cores_per_bank(self) -> int:
        return self.cores // self.banks

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates per cycle of one core."""
        return self.pixels * self.channels * self.channels

    @property
    def word_bytes(self) -> int:
        """A word is one pixel of one channel block."""
        return self.channels

    @property
    def feature_banks(self) -> int:
        return 2 * self.pixels

    @property
    def feature_lines(self) -> int:
        """Lines of the feature memory; a line is one word from each of its banks."""
        return self.feature_bytes // (self.feature_banks * self.word_bytes)

    @property
    def weight_word_bytes(self) -> int:
        return self.channels * self.channels

    @property
    def weight_words(self) -> int:
        return self.weight_bytes // self.weight_word_bytes

    @property
    def result_words(self) -> int:
        return self.result_bytes // self.word_bytes

    @property
    def parameter_word_bytes(self) -> int:
        """Eight bytes for each channel of a block: bias (int32), multiplier (uint16), shift (uint8), zero."""
        return 8 * self.channels

    @property
    def parameter_words(self) -> int:
        return self.parameter_bytes // self.parameter_word_bytes

    @property
    def slot_period(self) -> int:
        """Cycles after which the pattern of memory slots repeats; leases start at multiples of it."""
        return self.cores_per_bank * self.ddr.period_rounds

    @property
    def clear_cycles(self) -> int:
        """Cycles in which all on-chip memories of a core are zeroed at once, a word each a cycle."""
        return max(self.feature_lines, self.weight_words, self.parameter_words)

    def bank_of(self, core: int) -> int:
        return core // self.cores_per_bank

    def fingerprint(self) -> str:
        """32 hex digits that differ between configurations whose streams or cycles differ. The name does not count."""
        values = asdict(self)
        del values["name"], values["bank_bytes"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    def with_ddr_efficiency(self, active_rounds: int, period_rounds: int) -> HardwareConfig:
        """The same pool on DDR that moves data in ``active_rounds`` of ``period_rounds`` rounds."""
        return replace(self, ddr=replace(self.ddr, active_rounds=active_rounds, period_rounds=period_rounds))


def _check(config: HardwareConfig) -> None:
    """Every cross-check of a configuration."""
    ddr = config.ddr

    def require(condition: bool, text: str) -> None:
        if not condition:
            raise ConfigError(f"configuration {config.name!r}: {text}")

    require(1 <= config.cores <= 32, f"cores must be 1..32, not {config.cores}")
    require(1 <= config.banks <= 8, f"banks must be 1..8, not {config.banks}")
    require(
        config.cores % config.banks == 0, f"{config.cores} cores cannot be shared out evenly among {config.banks} banks"
    )
    require(config.pixels in (1, 2, 4, 8, 16), f"pixels must be 1, 2, 4, 8 or 16, not {config.pixels}")
    require(config.channels in (4, 8, 16, 32), f"channels must be 4, 8, 16 or 32, not {config.channels}")
    require(
        1 <= ddr.active_rounds <= ddr.period_rounds,
        f"DDR active rounds {ddr.active_rounds} must be 1..{ddr.period_rounds}",
    )
    for what, value in (
        ("line_bytes", ddr.line_bytes),
        ("burst_bytes", config.burst_bytes),
        ("fetch_burst_bytes", config.fetch_burst_bytes),
    ):
        require(value >= 32 and value & (value - 1) == 0, f"{what} must be a power of two of at least 32, not {value}")
    require(
        ddr.line_bytes <= config.fetch_burst_bytes,
        f"a fetch burst of {config.fetch_burst_bytes} bytes is below a DDR line",
    )
    require(
        ddr.line_bytes <= config.burst_bytes <= 4096,
        f"bursts of {config.burst_bytes} bytes are not within a DDR line .. 4 KiB",
    )
    require(
        config.fetch_depth * 32 >= 2 * config.fetch_burst_bytes, f"fetch depth {config.fetch_depth} is below two bursts"
    )
    for what, value in (
        ("feature lines", config.feature_lines),
        ("weight words", config.weight_words),
        ("result words", config.result_words),
        ("parameter words", config.parameter_words),
    ):
        require(value >= 4 and value & (value - 1) == 0, f"{what} must be a power of two of at least 4, not {value}")
    require(config.feature_lines <= 1 << 14, f"{config.feature_lines} feature lines exceed the 14-bit address")
    require(config.weight_words <= 1 << 12, f"{config.weight_words} weight words exceed the 12-bit address")
    require(config.result_words <= 1 << 14, f"{config.result_words} result words exceed the 14-bit address")
    require(config.parameter_words <= 1 << 10, f"{config.parameter_words} parameter words exceed the 10-bit address")


def preset(name: str) -> HardwareConfig:
    """The configuration called ``name``. Raises ConfigError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no configuration is called {name!r}; there are {', '.join(sorted(PRESETS))}") from None


PRESETS = {
    config.name: config
    for config in (
        HardwareConfig(name="u200"),
        # One static core of 4096 MACs with the memory and the bandwidth of the whole card: the baseline.
        HardwareConfig(
            name="large",
            cores=1,
            banks=1,
            pixels=16,
            channels=16,
            feature_bytes=4 * 1024 * 1024,
            weight_bytes=1024 * 1024,
            result_bytes=256 * 1024,
            parameter_bytes=64 * 1024,
            burst_bytes=4096,
            ddr=DdrConfig(line_bytes=256),
        ),
        # Four small cores on two banks, for fast RTL tests and small FPGAs.
        HardwareConfig(
            name="tiny",
            cores=4,
            banks=2,
            pixels=2,
            channels=4,
            feature_bytes=8 * 1024,
            weight_bytes=4 * 1024,
            result_bytes=2 * 1024,
            parameter_bytes=1024,
            fetch_depth=16,
            fetch_burst_bytes=128,
            burst_bytes=256,
            load_outstanding=4,
            queue_depth=4,
            bank_bytes=64 << 20,
            ddr=DdrConfig(line_bytes=32, read_latency=20, write_latency=10),
        ),
    )
}
