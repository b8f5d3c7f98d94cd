"""Tells dispatchers that tasks became ready, by NOTIFY, without a NOTIFY in each commit.

A NOTIFY inside a commit takes a lock that makes commits of a whole database stand in line. So it is sent afterwards, on a
connection of its own, and many announcements of a queue become one. It is a hint: when it is lost, the dispatcher's tick finds
the tasks.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

import structlog

from taskyard_api.database import Database

log = structlog.get_logger(__name__)
#: Seconds between two NOTIFYs. The first of a quiet time goes at once.
PAUSE = 0.005

_NOTIFY = "SELECT pg_notify('taskyard_ready', ready) FROM unnest($1::text[]) AS ready"


class Announcer:
    """Announces for one event loop. Close it before its engine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Not one of the pool's: it is kept.
        self._connection: Any = None
        self._ready: set[str] = set()
        self._sender: asyncio.Task[None] | None = None

    def announce(self, queue: str, lane: str) -> None:
        """Tasks of this queue's lane became ready, and are committed. Returns at once."""
        self._ready.add(f"{queue}/{lane}")
        if self._sender is None or self._sender.done():
            # It is for many requests: none of their ids belongs in its log lines.
            self._sender = asyncio.create_task(self._send(), context=Context())

    async def close(self) -> None:
        """Send what was announced, and give the connection back."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
        await self._disconnect()

    async def _send(self) -> None:
        while self._ready:
            ready, self._ready = self._ready, set()
            try:
                await self._notify(sorted(ready))
            except Exception as error:
                log.warning("announce.failed", queues=sorted(ready), reason=str(error))
                await self._disconnect()
            await asyncio.sleep(PAUSE)

    async def _notify(self, ready: list[str]) -> None:
        with self._database.watched() as watch:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._database.connect_apart()
            watch.driver = self._connection
            await self._connection.execute(_NOTIFY, ready)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=1)
            except Exception as error:
                log.debug("announce.close", reason=str(error))
                connection.terminate()
