"""`corepool demo`.

It must not know how the work is done.
"""

from __future__ import annotations

NAME = "demo"


def command() -> None:
    """To come."""
