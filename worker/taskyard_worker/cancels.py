"""Hears at once that a running task was asked to stop; the heartbeat finds what was missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

import structlog
from sqlalchemy import Engine

from taskyard.channels import CANCEL
from taskyard.database_errors import driver_words
from taskyard.listener import Listener

log = structlog.get_logger(__name__)


class Cancels:
    """Listens for cancel requests in the engine's loop."""

    def __init__(self, engine: Engine, on_cancel: Callable[[UUID], None]) -> None:
        self._listener = Listener(engine, CANCEL)
        self._on_cancel = on_cancel

    async def listen(self) -> None:
        """Listen until cancelled, over outages."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    await loop.run_in_executor(None, self._listener.connect)
                    await self._until_broken(loop)
                except Exception as error:
                    log.warning("cancels.not_heard", error=driver_words(error))
                self._listener.close()
                await asyncio.sleep(1.0)
        finally:
            self._listener.close()

    async def _until_broken(self, loop: asyncio.AbstractEventLoop) -> None:
        descriptor = self._listener.fileno()
        assert descriptor is not None
        broken: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, self._take, broken)
        try:
            await broken
        finally:
            loop.remove_reader(descriptor)

    def _take(self, broken: asyncio.Future[None]) -> None:
        try:
            for payload in self._listener.take():
                self._on_cancel(UUID(payload))
        except ValueError:
            log.warning("cancels.garbled")
        except Exception as error:
            if not broken.done():
                broken.set_exception(error)
