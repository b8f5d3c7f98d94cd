"""Tells dispatchers that tasks became ready, by NOTIFY, without a NOTIFY in each commit.

A NOTIFY inside a commit takes a lock that makes commits of a whole database stand in line. So it is sent afterwards, on a
connection of its own, and many announcements of a queue become one. It is a hint: when it is lost, the dispatcher's tick finds
the tasks. The same connection hears which lines are open to direct hints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import structlog

from taskyard.channels import HINTED, LINES
from taskyard_api.database import Database

log = structlog.get_logger(__name__)
#: Seconds between two NOTIFYs. The first of a quiet time goes at once.
PAUSE = 0.005
#: Seconds after which dispatchers look for a task whose direct hint was lost.
HINT_PATIENCE = 0.25

_NOTIFY = "SELECT pg_notify('taskyard_ready', ready) FROM unnest($1::text[]) AS ready"


class Announcer:
    """Announces for one event loop. Close it before its engine. ``hear`` gets the payloads of the channel LINES; None: nobody wants them."""

    def __init__(self, database: Database, hear: Callable[[str], None] | None = None) -> None:
        self._database = database
        self._hear = hear
        # Not one of the pool's: it is kept.
        self._connection: Any = None
        self._ready: set[str] = set()
        self._hinted: set[str] = set()
        self._later: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None

    def announce(self, queue: str, lane: str) -> None:
        """Tasks of this queue's lane became ready, and are committed. Returns at once."""
        self._ready.add(f"{queue}/{lane}")
        self._send_soon()

    def _send_soon(self) -> None:
        if self._sender is None or self._sender.done():
            # It is for many requests: none of their ids belongs in its log lines.
            self._sender = asyncio.create_task(self._send(), context=Context())

    def announce_hinted(self, queue: str, lane: str) -> None:
        """Tasks of this queue's lane are committed, and their direct hints on their way. Dispatchers hear of it after HINT_PATIENCE, once for many."""
        self._hinted.add(f"{queue}/{lane}")
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(HINT_PATIENCE, self._announce_hinted)

    def _announce_hinted(self) -> None:
        self._later = None
        hinted, self._hinted = self._hinted, set()
        self._ready.update(HINTED + line for line in hinted)
        self._send_soon()

    async def close(self) -> None:
        """Send what was announced, and give the connection back."""
        if self._later is not None:
            self._later.cancel()
            self._announce_hinted()
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
                if self._hear is not None:
                    await self._connection.add_listener(LINES, self._heard)
            watch.driver = self._connection
            await self._connection.execute(_NOTIFY, ready)

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        if self._hear is not None:
            self._hear(payload)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=1)
            except Exception as error:
                log.debug("announce.close", reason=str(error))
                connection.terminate()
