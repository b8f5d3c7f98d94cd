"""Finds tasks that are running far past their timeout: their worker beats, and has not ended them.

A worker ends what it runs in time, and gives back what it has lost track of. This is for what it can't know of itself: the row says that it
runs, and nothing of it does. All live tasks are looked at, a page at a time, so that a deep backlog costs each tick no more than a page.

Where dispatcher and workers share a machine, it may sleep (a laptop's lid): runs and their timers stop meanwhile, and go on afterwards. They get the time
that the machine slept on top. A worker that sleeps while its dispatcher does not is silent, and counts as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from taskyard import clock as clocks
from taskyard import lifecycle
from taskyard.settings import Settings

#: Live tasks that one look reads.
PAGE: Final = 5000
#: Seconds in which the end of a run is recorded.
RECORDED: Final = 10.0
#: Seconds between two looks, and from the end of one round to the next.
PAGE_EVERY, ROUND_EVERY = 0.5, 10.0
#: Seconds of sleep that count: less is the clocks' own.
SLEEP: Final = 1.0
_START: Final = ("", UUID(int=0))


def slack(settings: Settings) -> float:
    """Seconds past its timeout that a task may be running: ``dispatch.overdue_after``, but no less than its worker may take to start and to end it."""
    worker = settings.worker
    return max(settings.dispatch.overdue_after, worker.lifespan_timeout + worker.cancel_grace + 3 * worker.kill_grace + RECORDED)


class Overdue:
    """One dispatcher's rounds through the live tasks. Others may be at it too. ``since_boot`` goes on while the machine sleeps, ``clock`` does not."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic, since_boot: Callable[[], float] = clocks.now) -> None:
        self._slack = slack(settings)
        self._max_lost = settings.dispatch.max_lost
        self._clock = clock
        self._since_boot = since_boot
        self._apart = since_boot() - clock()
        self._slept, self._woke_at = 0.0, clock()
        self._after = _START
        self._look_at = clock()

    @property
    def due(self) -> bool:
        """Is it time to look?"""
        return self._clock() >= self._look_at

    def reap(self, connection: Connection) -> list[RowMapping]:
        """Look at the next page, and put what is overdue back in line; answers rows as lifecycle.reap does."""
        self._notice_sleep()
        awake = self._clock() - self._woke_at
        found = lifecycle.overdue(connection, self._after, self._slack, PAGE, self._slept, awake)
        lost = lifecycle.reap_overdue(connection, found.ids, self._slack, self._max_lost, self._slept, awake) if found.ids else []
        self._after = found.last or _START
        self._look_at = self._clock() + (PAGE_EVERY if found.last else ROUND_EVERY)
        return lost

    def _notice_sleep(self) -> None:
        apart = self._since_boot() - self._clock()
        if apart - self._apart >= SLEEP:
            self._slept += apart - self._apart
            self._woke_at, self._apart = self._clock(), apart
