"""Lists and actions, whose price their callers decide: a share of the pool and a time limit of their own, so that submissions always find a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import Connection, text

from taskyard.errors import Unavailable
from taskyard.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
_LIMIT = text("SELECT set_config('statement_timeout', :milliseconds, true)")


class Lists:
    """The share of lists and actions in one event loop. One namespace may have two thirds of it: others can list meanwhile."""

    def __init__(self, settings: Settings) -> None:
        size = settings.api.list_connections or max(1, settings.database.pool_size // 2)
        self._all = asyncio.Semaphore(size)
        self._size_of_one = max(1, 2 * size // 3)
        self._ones: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._patience = settings.database.connect_timeout
        limit = min(settings.api.list_timeout, settings.database.statement_timeout)
        self._milliseconds = str(round(limit * 1000))

    @asynccontextmanager
    async def place(self, namespace: str) -> AsyncIterator[None]:
        """Around whatever uses a connection for a list or an action.

        Raises:
            Unavailable: others had all places for longer than `database.connect_timeout`.
        """
        one = self._ones.setdefault(namespace, asyncio.Semaphore(self._size_of_one))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._patience):
                    await held.enter_async_context(one)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise Unavailable("Too many lists and actions are under way. Ones with more filters are quicker.") from None
            yield

    def timed(self, work: Callable[Concatenate[Connection, P], R]) -> Callable[Concatenate[Connection, P], R]:
        """``work`` whose statements are stopped when they take longer than `api.list_timeout`. For a transaction of its own."""

        def limited(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> R:
            connection.execute(_LIMIT, {"milliseconds": self._milliseconds})
            return work(connection, *args, **kwargs)

        return limited
