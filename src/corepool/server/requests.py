"""What requests may say beside their tensors, read alike for all transports.

It must not know how requests travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corepool.errors import RequestError, UnsupportedError
from corepool.server.api import Inferred, InferRequest
from corepool.server.tensors import Array, shown

MAX_TENSORS = 1024  # of one request
MAX_TEXT_BYTES = 16 << 20  # of JSON, or of numbers that are not raw: they take many times that once they are read


def make_request(
    model: str,
    version: str | None,
    inputs: Mapping[str, Array],
    outputs: tuple[str, ...] | None,
    parameters: Mapping[str, Any],
) -> InferRequest:
    """The request that its parameters describe; parameters of no meaning here are ignored, as everywhere."""
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if parameters.get(name):
            raise UnsupportedError(f"{name}: models here keep no state between requests, so there are no sequences")
    lease = parameters.get("lease")
    if lease is not None and not isinstance(lease, str):
        raise RequestError(f"lease must be a text, not {shown(lease)}")
    timeout = whole(parameters, "timeout", None)
    return InferRequest(
        model=model,
        inputs=inputs,
        version=version,
        outputs=outputs,
        lease=lease,
        priority=whole(parameters, "priority", 0) or 0,
        timeout_us=timeout or None,  # 0 stands for no limit
    )


def whole(parameters: Mapping[str, Any], name: str, default: int | None) -> int | None:
    """A parameter that counts something. Raises RequestError for anything but whole numbers from 0."""
    value = parameters.get(name, default)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise RequestError(f"{name} must be a whole number from 0, not {shown(value)}")
    return value


def flag(parameters: Mapping[str, Any], name: str, what: str) -> bool:
    """A parameter that is true or false, false if absent. Raises RequestError."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} of {what} must be true or false, not {shown(value)}")
    return value


def refuse_shared_memory(parameters: Mapping[str, Any], name: str) -> None:
    """Raise UnsupportedError for a tensor whose data are in memory that client and server share."""
    if any(key.startswith("shared_memory") for key in parameters):
        raise UnsupportedError(f"tensor {shown(name)}: shared memory is not supported; send the data")


def run_parameters(result: Inferred) -> dict[str, Any]:
    """What the device tells of a run, for answers."""
    return {
        "cycles": int(result.cycles),
        "device_us": float(result.device_us),
        "cores": int(result.cores),
        "lease": result.lease,
    }


def refuse_classification(parameters: Mapping[str, Any], name: str) -> None:
    """Raise UnsupportedError for an output that is wanted as labels."""
    if parameters.get("classification"):
        raise UnsupportedError(f"output {shown(name)}: classification is not built; ask for the values")
