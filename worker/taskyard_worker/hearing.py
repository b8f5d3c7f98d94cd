"""Notices that the broker gives this worker nothing any more, although there is something to give.

A queue that is deleted and declared anew within moments keeps its consumers, says RabbitMQ; but of a quorum queue they get nothing
from then on: its messages count as delivered, and never leave the broker (seen with 3.10, whenever the new queue is there before its
consumers are told of the old one's end). Neither side of the connection notices. Postgres does: what was queued is not claimed, by a
worker that has time. (Others met the like with later versions: rabbitmq-server issue 11228, rabbitmq-c issue 870.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from taskyard import unclaimed
from taskyard_worker.ledger import Ledger

log = structlog.get_logger(__name__)

#: A worker that heard nothing after it had connected anew, either, waits so many times longer until it does that again, at most.
MOST = 16


class Hearing:
    """Watches a worker's lanes. ``idle`` says of each whether it has room for more, ``connect_anew`` makes the broker give out what it holds back."""

    def __init__(self, ledger: Ledger, queues: list[str], patience: float, idle: Mapping[str, Callable[[], bool]], connect_anew: Callable[[], None]) -> None:
        self._ledger = ledger
        self._queues = queues
        self._patience = patience
        self._idle = idle
        self._connect_anew = connect_anew
        self._heard_at = dict.fromkeys(idle, time.monotonic())
        self._times = 1

    def heard(self, lane: str) -> None:
        """A message came."""
        self._heard_at[lane] = time.monotonic()
        self._times = 1

    async def watch(self) -> None:
        """Look now and then, until cancelled. While something comes, or there is no room for it, nobody is asked."""
        while True:
            await asyncio.sleep(self._patience)
            try:
                await self._look()
            except Exception as error:
                log.debug("hearing.not_asked", error=type(error).__name__)

    async def _look(self) -> None:
        quiet = [lane for lane in self._idle if self._is_quiet(lane)]
        if not quiet:
            return
        deaf = await self._ledger.call(partial(unclaimed.lanes_with_unclaimed, queues=self._queues, lanes=quiet, seconds=self._patience))
        # One may have come while the database was asked.
        if deaf := {lane for lane in deaf if self._is_quiet(lane)}:
            log.warning("worker.hears_nothing", lanes=sorted(deaf), consequence="it connects to the broker anew")
            self._heard_at = dict.fromkeys(self._idle, time.monotonic())
            self._times = min(MOST, self._times * 2)
            self._connect_anew()

    def _is_quiet(self, lane: str) -> bool:
        return self._idle[lane]() and time.monotonic() - self._heard_at[lane] >= self._patience * self._times
