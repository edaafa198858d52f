"""`corepool inspect`.

It must not know how the work is done.
"""

from __future__ import annotations

NAME = "inspect"


def command() -> None:
    """To come."""
