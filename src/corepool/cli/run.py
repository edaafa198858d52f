"""`corepool run`.

It must not know how the work is done.
"""

from __future__ import annotations

NAME = "run"


def command() -> None:
    """To come."""
