"""How long announcements are left to gather before they are heeded: not at all while tasks come one by one.

Each look costs a statement, a commit, and a wake-up of all processes on a task's way, whatever it finds. So while more than one task comes
between two looks, the next look waits longer, up to :data:`LONGEST`; and less, while none does. Network cards moderate their interrupts so.
"""

from __future__ import annotations

import time

#: Seconds between two looks, first and at most, while more than one task comes in between.
SHORTEST, LONGEST = 0.002, 0.03


class Gathering:
    """The time between two looks of one dispatcher."""

    def __init__(self) -> None:
        self._between = 0.0
        self._looked_at = 0.0

    def wait(self) -> None:
        """Wait until the next look is due."""
        time.sleep(max(0.0, self._looked_at + self._between - time.monotonic()))
        self._looked_at = time.monotonic()

    def found(self, tasks: int) -> None:
        """A look has found so many tasks to dispatch."""
        if tasks > 1:
            self._between = min(LONGEST, max(SHORTEST, self._between * 2))
        else:
            self._between = self._between / 2 if self._between > SHORTEST else 0.0
