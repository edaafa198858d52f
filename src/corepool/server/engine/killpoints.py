"""Named places at which a test may end the process or its engine: around every arrow of a core's life.

It must not know what happens at them; without a hook they cost a comparison.
"""

from __future__ import annotations

from collections.abc import Callable

ARROWS = ("reserve", "wipe", "program", "activate", "drain", "clear", "free")
"""FREE to RESERVED; RESERVED to CLEARING; cleared, to PROGRAMMING; PROGRAMMING to ACTIVE; ACTIVE to DRAINING; DRAINING
(or ACTIVE without work) to CLEARING; CLEARING to FREE."""

GAPS = ("before", "intended", "acted")
"""Before the intent row is committed; between that and the device's action; between the action and the done row."""

KILL_POINTS = tuple(f"{arrow}.{gap}" for arrow in ARROWS for gap in GAPS)

Hook = Callable[[str], None]


class KillPoints:
    """Calls the hook, if there is one, with the name of each point that is passed."""

    def __init__(self, hook: Hook | None = None) -> None:
        self._hook = hook
        self.crashing = False  # a hook has raised: what follows is a crash, not a defect

    def passed(self, arrow: str, gap: str) -> None:
        if self._hook is not None:
            try:
                self._hook(f"{arrow}.{gap}")
            except BaseException:
                self.crashing = True
                raise
