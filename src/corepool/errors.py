"""Exceptions the project raises on purpose, one class per kind of trouble.

It must not know any other module; each message is written where the trouble is found.
"""


class CorepoolError(Exception):
    """Base of every deliberate error.

    The text is one clear line that names the thing at fault and says what to do about it,
    so a command can print it as it stands, without a traceback.
    """


class ConfigError(CorepoolError):
    """A setting or hardware configuration is missing, out of range or contradicts another one."""


class ModelError(CorepoolError):
    """An ONNX model is broken or uses something unsupported; the text lists every problem found."""


class CalibrationError(ModelError):
    """Quantisation ranges of a model cannot be derived from the calibration inputs given."""


class PackageError(CorepoolError):
    """A stored package is damaged, incomplete, or was written for another format or configuration."""


class ConfigMismatchError(PackageError):
    """A package is sound but was made for another hardware configuration than the one at hand."""


class InputError(CorepoolError):
    """Data handed in for a run has the wrong shape, type, range or file format."""


class LinkError(CorepoolError):
    """Stored code cannot be joined into programs for the cores and memory on offer."""


class DeviceError(CorepoolError):
    """A device refuses a request, is in the wrong state, or stopped answering."""


class FaultError(DeviceError):
    """A running core stopped on a fault: a bad instruction, an access outside its bounds, a deadlock."""


class BusError(DeviceError):
    """The hardware, or what stands at its edge, broke a rule of a bus; the text names bus, cycle and rule."""


class InstructionError(CorepoolError):
    """An instruction cannot be encoded, decoded or parsed: unknown name, bad field or value out of range."""


class HypervisorError(CorepoolError):
    """The hypervisor refuses a request; its state is as before."""


class TenantError(HypervisorError):
    """A tenant is unknown, exists already, or still holds something."""


class QuotaError(HypervisorError):
    """A tenant asks for more cores than its quota allows."""


class LeaseError(HypervisorError):
    """A lease is unknown, in the wrong state, or asks for what the card cannot give."""


class JobError(HypervisorError):
    """A job is unknown, repeated, or asks for what its lease cannot do."""


class DeadlineError(JobError):
    """By prediction a job would miss its deadline, or make an accepted one miss its own."""


class ToolError(CorepoolError):
    """An external tool that a command needs is missing, or it failed; the text names it and its last words."""


class RequestError(CorepoolError):
    """A request to the server is malformed: unknown field, bad name, wrong type, contradiction."""


class AuthenticationError(CorepoolError):
    """A request carries no key, or one that is unknown or revoked."""


class PermissionDeniedError(CorepoolError):
    """The key is sound, but its role may not do this."""


class NotFoundError(CorepoolError):
    """A named thing is not there, or is another tenant's: both look alike."""


class ConflictError(CorepoolError):
    """A request contradicts what there is: the name is taken, or a package was made for other hardware."""


class TooLargeError(CorepoolError):
    """A request is larger than the limit that the text names."""


class TooManyRequestsError(CorepoolError):
    """A rate or queue limit is reached; ``retry_after_s`` says when it is worth to try again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(CorepoolError):
    """The server or a model cannot answer now: it starts, drains, or the model is not loaded."""


class UnsupportedError(CorepoolError):
    """The request is sound, but asks for something that is not built."""


class DeadlineExceededError(CorepoolError):
    """The time that a request allowed has passed."""


class StorageFullError(CorepoolError):
    """There is no room left for durable state; reading, inference and releasing still work."""


class StoreError(CorepoolError):
    """Durable state is damaged, locked by another process, or of another version."""


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's library said, for a message of one line; its class if it said nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
