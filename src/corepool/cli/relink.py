"""`corepool relink`.

It must not know how the work is done.
"""

from __future__ import annotations

NAME = "relink"


def command() -> None:
    """To come."""
