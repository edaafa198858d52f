"""Settings of a hypervisor: the size of its card, its private policy, and what changes cost.

It must not know tenants, leases or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from corepool.config import HardwareConfig
from corepool.errors import ConfigError
from corepool.hypervisor.model import Model, to_ns
from corepool.hypervisor.numbers import wholes

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Costs:
    """What it takes to give a lease other cores, in nanoseconds and bytes per second."""

    relink_ns: int = 300_000  # dynamic compilation on the host; measured by `corepool relink`
    pcie_bytes_per_s: int = 12_000_000_000  # PCIe 3.0 x16: 15.75 GB/s raw, about 12 GB/s of payload with DMA
    pcie_latency_ns: int = 5_000  # doorbell, descriptor fetch and completion of one DMA transfer
    clear_ns: int = 13_654  # all on-chip memories of a core at once, a word each a cycle: 4096 cycles at 300 MHz

    def __post_init__(self) -> None:
        if not wholes((self.pcie_bytes_per_s,), 1) or not wholes((self.relink_ns, self.pcie_latency_ns, self.clear_ns)):
            raise ConfigError("costs are whole numbers and not negative, the transfer rate is at least 1 byte/s")

    @classmethod
    def of(cls, config: HardwareConfig, relink_ns: int = 300_000) -> Costs:
        """Costs on a card: clearing takes a cycle a word of the deepest on-chip memory."""
        depth = max(config.feature_lines, config.weight_words, config.result_words, config.parameter_words)
        return cls(relink_ns=relink_ns, clear_ns=to_ns(depth, config))

    def transfer_ns(self, size: int) -> int:
        """Time of one transfer of ``size`` bytes to the card; none for no bytes."""
        return self.pcie_latency_ns + -(-size * SECOND // self.pcie_bytes_per_s) if size else 0

    def switch_ns(self, model: Model, cores: int) -> int:
        """Predicted time to bring a model onto other cores of banks that hold its weights."""
        return self.relink_ns + self.transfer_ns(model.stream_bytes[cores - 1])


@dataclass(frozen=True)
class Settings:
    """What a hypervisor is told at its start. Times in nanoseconds. Raises ConfigError for impossible values.

    ``policy`` deals cores among private leases. One step of a tenant's priority is worth ``ageing_ns`` of waiting, so
    nobody waits for ever; a job without a deadline is treated as if due ``patience_ns`` after its submission.
    A private lease counts as having work for ``linger_ns`` after its last job, so that tenants who send one request at
    a time do not lose their cores between two. With ``lend`` a private lease without work lends its minimum, too.
    """

    cores: int = 16
    banks: int = 4
    bank_bytes: int = 4 << 30
    policy: str = "private-even"
    ageing_ns: int = SECOND
    patience_ns: int = SECOND
    linger_ns: int = 0
    lend: bool = True
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        from corepool.hypervisor.policies import POLICIES

        if not wholes((self.cores, self.banks), 1) or self.cores % self.banks:
            raise ConfigError(f"{self.cores!r} cores cannot be shared out evenly among {self.banks!r} banks")
        if not isinstance(self.policy, str) or self.policy not in POLICIES:
            raise ConfigError(f"no policy is called {self.policy!r}; there are {', '.join(POLICIES)}")
        if not wholes((self.bank_bytes, self.ageing_ns, self.patience_ns), 1):
            raise ConfigError("bank size, ageing and patience are positive whole numbers")
        if not wholes((self.linger_ns,)):
            raise ConfigError(f"lingering must not be negative, nor broken, not {self.linger_ns!r} ns")
        if not isinstance(self.lend, bool) or not isinstance(self.costs, Costs):
            raise ConfigError(f"lend is true or false and costs are Costs, not {self.lend!r} and {self.costs!r}")

    @classmethod
    def of(
        cls, config: HardwareConfig, policy: str = "private-even", relink_ns: int = 300_000, linger_ns: int = 0,
        lend: bool = True,
    ) -> Settings:  # fmt: skip
        """Settings for a card."""
        costs = Costs.of(config, relink_ns)
        return cls(config.cores, config.banks, config.bank_bytes, policy, linger_ns=linger_ns, lend=lend, costs=costs)

    @property
    def cores_per_bank(self) -> int:
        return self.cores // self.banks

    def bank_of(self, core: int) -> int:
        return core // self.cores_per_bank
