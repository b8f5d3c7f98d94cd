"""Waiting for tasks to end, thousands of requests at once, without asking again and again.

Requests that begin to wait at the same time share a statement. One connection of a process listens. The transaction that ends a task
says so by NOTIFY, if the task's row says that somebody waits (see lifecycle.await_ends). Notifications are lost with the connection; so
when it is back, all that are waited for are looked at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from taskyard import lifecycle, queries
from taskyard.channels import ENDED
from taskyard.database_errors import driver_words
from taskyard.errors import NotFound, Unavailable
from taskyard_api.database import Database

log = structlog.get_logger(__name__)
#: Seconds between two signs of life of the listening connection, and that each of them may take.
PULSE, PULSE_TIMEOUT = 10.0, 2.0
#: Seconds until a listening connection that was lost, or could not be had, is tried again.
PAUSE = 0.5
#: Seconds until a look is repeated that found a task's row locked, so that it could not note the wait in it. They double up to the second.
LOCKED, LOCKED_LONGEST = 0.005, 0.1
#: Tasks that one look asks for.
PAGE = 500


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Who looks at a task. ``awaited``: its row says already that somebody waits."""

    task: tuple[str, UUID]
    awaited: bool
    answer: asyncio.Future[RowMapping]


class Waits:
    """Waits for one event loop. Close it before its engine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._asked: list[_Asked] = []
        self._keeper: asyncio.Task[None] | None = None
        self._looker: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Answer all who wait with what there is, for good."""
        self._closed = True
        self._wake(*list(self._waiting))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    def count(self) -> int:
        """How many wait now."""
        return sum(map(len, self._waiting.values()))

    async def until_ended(self, namespace: str, task_id: UUID, seconds: float, *, awaited: bool = False) -> RowMapping:
        """A task's row once it has ended, or as it is after so many seconds. ``awaited``: it was submitted with that in its row.

        Raises:
            NotFound: it is not there.
            Unavailable: the database can't be reached now.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        pause = LOCKED
        if not self._closed and (self._keeper is None or self._keeper.done()):
            # It is for many requests: none of their ids belongs in its log lines.
            self._keeper = asyncio.create_task(self._listen(), context=Context())
        while True:
            news: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(task_id, set()).add(news)
            try:
                row = await self._look(namespace, task_id, awaited)
                if row["ended"] is not None or self._closed or loop.time() >= end:
                    return row
                # Noted once, it stays noted, for lives after a retry too.
                awaited = row["awaited"]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(end if awaited else min(end, loop.time() + pause)):
                        await news
                pause = min(pause * 2, LOCKED_LONGEST)
            finally:
                self._forget(task_id, news)

    async def _look(self, namespace: str, task_id: UUID, awaited: bool) -> RowMapping:
        answer: asyncio.Future[RowMapping] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked((namespace, task_id), awaited, answer))
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_for_all(), context=Context())
        return await answer

    async def _look_for_all(self) -> None:
        """Answer all who look, many with one statement."""
        while self._asked:
            asked, self._asked = self._asked[:PAGE], self._asked[PAGE:]
            found: dict[tuple[str, UUID], RowMapping] = {}
            trouble: Exception | None = None
            try:
                found = await self._rows_of([one.task for one in asked], note=not all(one.awaited for one in asked))
            except Exception as error:
                trouble = error
            for one in asked:
                if one.answer.done():
                    continue
                if trouble is None and one.task in found:
                    one.answer.set_result(found[one.task])
                else:
                    one.answer.set_exception(trouble or NotFound(f"There is no task {one.task[1]} here."))

    async def _rows_of(self, tasks: list[tuple[str, UUID]], *, note: bool) -> dict[tuple[str, UUID], RowMapping]:
        """The tasks' rows; ``note`` in those that live that somebody waits."""
        return await self._database.single(lifecycle.await_ends if note else lifecycle.look_at, tasks)

    def _forget(self, task_id: UUID, news: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(task_id, set())
        waiting.discard(news)
        if not waiting:
            self._waiting.pop(task_id, None)

    def _wake(self, *task_ids: UUID) -> None:
        for task_id in task_ids:
            for news in self._waiting.get(task_id, ()):
                if not news.done():
                    news.set_result(None)

    # --- the listening connection ---

    async def _listen(self) -> None:
        """Listen, over outages, for as long as somebody waits."""
        while self._waiting:
            connection, broken = None, asyncio.Event()
            try:
                connection = await self._database.connect_apart()
                connection.add_termination_listener(lambda _, broken=broken: broken.set())
                async with asyncio.timeout(PULSE_TIMEOUT):
                    await connection.add_listener(ENDED, self._hear)
                await self._look_at_all()
                await self._stay(connection, broken)
            except Exception as error:
                log.warning("waits.not_heard", error=driver_words(error))
                await asyncio.sleep(PAUSE)
            finally:
                if connection is not None:
                    connection.terminate()

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        with suppress(ValueError):
            self._wake(UUID(payload))

    async def _look_at_all(self) -> None:
        """What has ended while nobody listened."""
        waited_for = list(self._waiting)
        for start in range(0, len(waited_for), PAGE):
            self._wake(*await self._database.read(queries.ended_of, waited_for[start : start + PAGE]))

    async def _stay(self, connection: Any, broken: asyncio.Event) -> None:
        """Return when nobody waits any more. Raises if the connection is gone, or says nothing any more."""
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE):
                    await broken.wait()
            if broken.is_set():
                raise Unavailable("The listening connection is gone.")
            await connection.execute("SELECT 1", timeout=PULSE_TIMEOUT)
