"""The queues that live workers served a moment ago. Who submits to another queue is warned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context

import structlog

from taskyard.database_errors import driver_words
from taskyard.errors import Unavailable

log = structlog.get_logger(__name__)
#: Seconds between two looks at the database, while tasks are submitted.
FRESH = 5.0
#: Queues that one warning names.
NAMED = 5


class Served:
    """A set of queues. Submissions look at it, and never wait for the database: a task of its own refreshes it, at most once in :data:`FRESH` seconds."""

    def __init__(self, look: Callable[[], Awaitable[frozenset[str]]]) -> None:
        self._look = look
        self._queues: frozenset[str] | None = None
        self._until = 0.0
        self._looking: asyncio.Task[None] | None = None

    def warning(self, queues: Iterable[str]) -> str | None:
        """A warning for tasks of these queues. None: all queues are served, or it is not known yet."""
        if time.monotonic() >= self._until and (self._looking is None or self._looking.done()):
            # In a context of its own: the look is not part of the request that starts it.
            self._looking = asyncio.create_task(self._refresh(), context=Context())
        known = self._queues
        if known is None or not (missing := sorted({queue for queue in queues if queue not in known})):
            return None
        told = ", ".join(missing[:NAMED]) + (" and others" if len(missing) > NAMED else "")
        return f"no live worker serves the queue {told}" if len(missing) == 1 else f"no live worker serves the queues {told}"

    async def _refresh(self) -> None:
        try:
            self._queues = await self._look()
        except Unavailable as error:
            self._queues = None
            log.info("served.unknown", error=driver_words(error))
        self._until = time.monotonic() + FRESH

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
