"""Trying again inside: a transaction that PostgreSQL has undone, and that a second try commits, is nobody's concern.

Such are a deadlock, a serialization failure, and a plan that was cached before a migration altered its table. PostgreSQL says of each that
nothing was done, so even a statement that must not run twice is safe to repeat.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Concatenate, Final, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from taskyard.database_errors import driver_words, is_undone, sqlstate_of

log = structlog.get_logger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
#: Tries of one transaction, the first included.
TRIES: Final = 5
#: Seconds that the first pause takes at most. Each one after it may take twice as long: whoever met in a deadlock should not meet again.
FIRST_PAUSE: Final = 0.01


def transaction(engine: Engine, verb: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a verb in a transaction of its own, and commit. It is run again if PostgreSQL undid it; all that it does is in the database."""

    def once() -> R:
        with engine.begin() as connection:
            return verb(connection, *args, **kwargs)

    return retried(once)


def retried(attempt: Callable[[], R]) -> R:
    """What an attempt answers, which makes a transaction of its own. Raises what the last try raised."""
    for number in range(1, TRIES):
        try:
            return attempt()
        except Exception as error:
            time.sleep(_pause(error, number))
    return attempt()


async def retried_async(attempt: Callable[[], Awaitable[R]]) -> R:
    """:func:`retried` for coroutines."""
    for number in range(1, TRIES):
        try:
            return await attempt()
        except Exception as error:
            pause = _pause(error, number)
        await asyncio.sleep(pause)
    return await attempt()


def _pause(error: Exception, number: int) -> float:
    """Seconds until the next try. Raises the error if another try is no use."""
    if not is_undone(error):
        raise error
    log.info("transaction.repeated", sqlstate=sqlstate_of(error), error=driver_words(error), tries=number)
    return random.uniform(0, FIRST_PAUSE * 2 ** (number - 1))
