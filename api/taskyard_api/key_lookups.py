"""Looking up access keys, many with one statement."""

from __future__ import annotations

import asyncio
from contextvars import Context

from taskyard import keys
from taskyard.errors import Unavailable
from taskyard.keys import Caller
from taskyard_api.database import Database

#: Keys that one statement looks up.
MAX_KEYS = 500

Answer = asyncio.Future[Caller | None]


class KeyLookups:
    """Looks up keys for one event loop. Keys that come while a statement is on its way share the next one.

    So a flood of wrong keys holds one connection and costs a bounded number of statements, and no right key has to be refused because of it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, Answer] = {}
        self._working: asyncio.Task[None] | None = None

    async def look_up(self, key: str) -> Caller | None:
        """Whom a key speaks for; None if it is none of ours.

        Raises:
            Unavailable: the database can't say now.
        """
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_hear)
        if self._working is None or self._working.done():
            # In a context of its own: the request that began it is not the only one that it works for.
            self._working = asyncio.create_task(self._work(), context=Context())
        # Others may wait for the same answer after this request has left.
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """Wait until all keys that were handed in are looked up."""
        if self._working is not None:
            await asyncio.wait({self._working})

    async def _work(self) -> None:
        while self._waiting:
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:MAX_KEYS]}
            try:
                found = await self._database.write(keys.look_up_all, list(batch))
            except Exception as error:
                if isinstance(error, Unavailable):
                    # Keys that came while the database did not answer would wait as long again.
                    batch |= self._waiting
                    self._waiting = {}
                for answer in batch.values():
                    answer.set_exception(error)
            else:
                for key, answer in batch.items():
                    answer.set_result(found.get(key))


def _hear(answer: Answer) -> None:
    """Asyncio complains about an error that nobody took."""
    if not answer.cancelled():
        answer.exception()
