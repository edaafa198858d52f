"""Devices that execute core programs, behind one common interface.

It must not know of networks, tenants or how a program was compiled.
"""

from corepool.device.base import Completion, Counters, Device, Fault, FaultReport, Lease

__all__ = ["Completion", "Counters", "Device", "Fault", "FaultReport", "Lease"]
