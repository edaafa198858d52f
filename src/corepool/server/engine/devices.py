"""The devices that an engine can drive, by name; each is made when it is first used.

It must not know what runs on them.
"""

from __future__ import annotations

from collections.abc import Callable

from corepool.config import HardwareConfig
from corepool.device.base import Device
from corepool.errors import ConfigError
from corepool.server.engine.card import Card


def open_card(kind: str, config: HardwareConfig) -> Card:
    """``simulator``: executes streams, a device for each lease; ``rtl``: the compiled hardware, one for all.

    Raises ConfigError for another name.
    """

    def simulator() -> Device:
        from corepool.device.simulator import Simulator

        return Simulator(config)

    def rtl() -> Device:
        from corepool.device.rtl import RtlDevice

        return RtlDevice(config)

    known: dict[str, Callable[[], Device]] = {"simulator": simulator, "rtl": rtl}
    if kind not in known:
        raise ConfigError(f"no device is called {kind!r}; there are {', '.join(known)}")
    return Card(config, known[kind], separate=kind == "simulator")
