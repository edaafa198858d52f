"""The option `--device`: what executes streams, the simulator or the hardware itself.

It must not know what is run on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from corepool.cli import output
from corepool.errors import InputError

if TYPE_CHECKING:
    from corepool.config import HardwareConfig
    from corepool.device.base import Device

SIMULATOR, RTL = "simulator", "rtl"
NAMES = (SIMULATOR, RTL)

DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="What executes the streams: simulator, or rtl, the hardware itself."),
]


def check_device(name: str) -> str:
    """``name`` if there is such a device; raises InputError."""
    if name not in NAMES:
        raise InputError(f"there is no device {name!r}; there are: {', '.join(NAMES)}")
    return name


def open_device(name: str, config: HardwareConfig, say: Callable[[str], None], *, data: bool = True) -> Device:
    """A device of ``config``; ``say`` is told before it takes long, and progress is shown.

    ``data``: False lets the simulator count time only. Raises InputError for an unknown name, and ToolError where the
    hardware cannot be compiled.
    """
    if check_device(name) == SIMULATOR:
        from corepool.device.simulator import Simulator

        return Simulator(config, data=data)
    from corepool.device.rtl import RtlDevice
    from corepool.device.rtl_build import compiled, minutes, shared_library

    if not compiled(config):
        count = minutes(config)
        say(f"compiling the hardware of {config.name}, about {count} minutes, once")
        with output.progress("compiling the hardware") as show:
            shared_library(config, show)
    return RtlDevice(config)
