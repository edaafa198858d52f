"""Ctrl-C and polite requests to end: noted at once, acted upon where nothing can be left half done.

It must not know the commands; it imports nothing of the project.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

PATIENCE_S = 1.0  # until a request is acted upon wherever the program is, as no safe point was reached
INSISTENCE_S = 5.0  # between attempts, should compiled code have swallowed one: time enough to tidy up after each

_WORDS = {signal.SIGINT: "interrupted"}


class StopRequest(BaseException):
    """Somebody wants the program to end. No part may take it for an error of its own, so it is no Exception."""


class _Noted:
    """The latest request, if any."""

    number: int | None = None


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP, except those that the caller wants ignored; a second one ends the program at
    once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _note)
    signal.signal(signal.SIGALRM, _insist)
    earlier = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, StopRequest):
            earlier(unraisable)

    sys.unraisablehook = quiet


def _note(number: int, frame: FrameType | None) -> None:
    _Noted.number = number
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is _note:
            signal.signal(each, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, INSISTENCE_S)


def _insist(number: int, frame: FrameType | None) -> None:
    safe_point()


def safe_point() -> None:
    """Raise StopRequest if a request was noted: called where the program may well end."""
    if _Noted.number is not None:
        raise StopRequest


def settle() -> tuple[int, str] | None:
    """After the command: exit code and one line about a request that was noted, or None. Nothing is raised any more."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _Noted.number is None:
        return None
    return 128 + _Noted.number, _WORDS.get(signal.Signals(_Noted.number), "terminated")
