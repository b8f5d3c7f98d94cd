"""Until when a worker can be sure that what it claimed is still its own.

Its engine and its children share one clock, which goes on while a process is stopped and while the whole machine sleeps. Whoever
wakes from that with claims that others may have run meanwhile starts none of them: each job says by when it must be started, and
the process that runs it looks at the clock just before it does.
"""

from __future__ import annotations

from typing import Any

from taskyard import clock


def is_over(job: dict[str, Any]) -> bool:
    """May others have this job by now?"""
    return clock.now() >= float(job["start_by"])


class Lease:
    """Held for ``silence`` seconds from each beat of the heart: no reaper gives a worker up before that.

    One that was given up has lost it for ever, and takes a new one for what it claims from then on.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self.ends_at = 0.0
        self.lost = False

    def lose(self) -> None:
        """The worker was given up, whatever the clocks say."""
        self.lost = True
        self.ends_at = 0.0

    def renew(self, asked_at: float) -> None:
        """A beat has reached the database. It was asked for at ``asked_at``: the database's clock counts from a moment after that."""
        self.ends_at = asked_at + self._silence
