"""Limits that a process puts on itself before it touches what nobody vouches for: processor, memory, files, no network.

It must not know what the process does then. Linux; where a barrier cannot be had, the others still stand, and the
answer of ``confine`` says which do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from dataclasses import dataclass

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2

# Per machine: its number in audit records, and its calls that open sockets or look into other processes:
# socket, socketpair, connect, bind, ptrace, process_vm_readv, process_vm_writev.
_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 42, 49, 101, 310, 311)),
    "aarch64": (0xC00000B7, (198, 199, 203, 200, 117, 270, 271)),
}
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the filter's little machine: word at, jump if equal, return
_X32 = 0x40000000  # calls from here on are another numbering of x86_64's calls
_JUMP_FROM = 0x35
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the process may take: seconds, bytes, bytes of one file, files open at once."""

    cpu_s: int
    memory_bytes: int
    file_bytes: int
    files: int


def confine(bounds: Bounds) -> list[str]:
    """Put the limits on this process and all that it starts. Returns the barriers to the network that stand.

    Raises OSError or ValueError if a limit cannot be set.
    """
    _die_with_parent()
    for kind, limit in (
        (resource.RLIMIT_CPU, bounds.cpu_s),
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
        (resource.RLIMIT_NOFILE, bounds.files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is an error, not the end
    barriers = []
    if _leave_network():
        barriers.append("namespace")
    if _filter_calls():
        barriers.append("seccomp")
    sys.addaudithook(_refuse_sockets)
    return [*barriers, "audit hook"]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    parent = os.getppid()
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died meanwhile
        os._exit(1)


def _leave_network() -> bool:
    """Move into a network without interfaces."""
    unshare = getattr(_libc(), "unshare", None)
    if unshare is None:
        return False
    return any(unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def _filter_calls() -> bool:
    """Let the kernel refuse calls that open sockets; holds for native code too, and cannot be undone."""
    if platform.machine() not in _CALLS:
        return False
    program = _program(*_CALLS[platform.machine()])
    held = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held))
    libc = _libc()
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0)


def _program(machine: int, calls: tuple[int, ...]) -> bytes:
    """The filter: refuse foreign numberings and the calls, allow the rest. Jumps count instructions to skip."""

    def line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    count = len(calls)
    lines = [
        line(_LOAD, 4),  # the machine's number stands at byte 4
        line(_JUMP_EQUAL, machine, 0, count + 3),
        line(_LOAD, 0),  # the call's number
        line(_JUMP_FROM, _X32, count + 1, 0),
        *(line(_JUMP_EQUAL, call, count - index, 0) for index, call in enumerate(calls)),
        line(_RETURN, _ALLOW),
        line(_RETURN, _REFUSE),
    ]
    return b"".join(lines)


def _refuse_sockets(event: str, arguments: object) -> None:
    if event in ("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo"):
        raise PermissionError("this process has no network")
