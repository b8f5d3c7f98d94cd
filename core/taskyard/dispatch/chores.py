"""The dispatcher's chores: what may be left undone for a while, and must not keep it from dispatching and from finding silent workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from taskyard.database_errors import driver_words, is_mistake, is_outage, was_rolled_back

log = structlog.get_logger(__name__)

#: Seconds before a chore that failed is tried again.
AGAIN: Final = 10.0


class Chores:
    """Does each chore by itself: one that fails, for want of a right or of time, holds up no other."""

    def __init__(self, *chores: Callable[[], None]) -> None:
        self._chores = chores
        self._not_before: dict[Callable[[], None], float] = {}

    def do(self) -> None:
        """Do them all. Raises what says that the database is away: that is no chore's own trouble."""
        for chore in self._chores:
            if time.monotonic() < self._not_before.get(chore, 0.0):
                continue
            try:
                chore()
            except Exception as error:
                outage = is_outage(error)
                if outage and not was_rolled_back(error):
                    raise
                self._not_before[chore] = time.monotonic() + AGAIN
                name = getattr(chore, "__name__", repr(chore)).strip("_")
                unexpected = error if not outage or is_mistake(error) else None
                log.warning("dispatcher.chore_failed", chore=name, error=driver_words(error), seconds=AGAIN, exc_info=unexpected)
