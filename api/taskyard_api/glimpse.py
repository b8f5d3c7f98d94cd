"""A look at the database that nobody waits long for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

from taskyard.errors import Unavailable

R = TypeVar("R")
#: Seconds. Health checks and scrapes answer within 2.
PATIENCE = 1.5


class Glimpse(Generic[R]):
    """Whoever asks while a look is under way shares it: however many ask, a hanging database holds up one connection."""

    def __init__(self, look: Callable[[], Awaitable[R]]) -> None:
        self._look = look
        self._looking: asyncio.Task[R] | None = None

    async def take(self) -> R:
        """What the look brings.

        Raises:
            Unavailable: it takes too long; it is left to end by itself.
        """
        if self._looking is None or self._looking.done():
            # In a context of its own: the request that began it is not the only one that it is for.
            self._looking = asyncio.create_task(self._run(), context=Context())
            self._looking.add_done_callback(_hear)
        # Not wait_for: that waits for the end of what it cancels, and a hanging connection's end hangs too.
        done, _ = await asyncio.wait({self._looking}, timeout=PATIENCE)
        if not done:
            raise Unavailable(f"The database did not answer within {PATIENCE:g} s.")
        return self._looking.result()

    async def _run(self) -> R:
        return await self._look()

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking}, timeout=PATIENCE)


def _hear(task: asyncio.Task[R]) -> None:
    """Asyncio complains about an error that nobody took."""
    if not task.cancelled():
        task.exception()
