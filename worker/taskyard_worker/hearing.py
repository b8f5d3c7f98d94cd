"""Notices that the broker gives this worker nothing of a queue any more, although there is something to give.

A queue that is deleted and declared anew within moments keeps its consumers, says RabbitMQ; but of a quorum queue they get nothing
from then on: its messages count as delivered, and never leave the broker (seen with 3.10, whenever the new queue is there before its
consumers are told of the old one's end). Neither side of the connection notices. Postgres does: what was queued is not claimed, by a
worker that would take it. (Others met the like with later versions: rabbitmq-server issue 11228, rabbitmq-c issue 870.)
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from taskyard import unclaimed
from taskyard.database_errors import driver_words
from taskyard_worker.ledger import Ledger

log = structlog.get_logger(__name__)

#: A queue that brought nothing after the worker had connected anew, either, is given so many times longer, at most.
MOST = 16


@dataclass(slots=True)
class _Consumed:
    """What came by one consumer: it gets no more than ``prefetch`` messages that are not settled."""

    prefetch: int
    heard_at: float
    open: int = 0
    times: int = 1

    def is_quiet(self, patience: float) -> bool:
        """Has it brought nothing for long, with room for more?"""
        return self.open < self.prefetch and time.monotonic() - self.heard_at >= patience * self.times


class Hearing:
    """Watches what a worker consumes: (queue, lane), and how many messages of each it may hold.

    ``connect_anew`` makes the broker give out what it holds back, ``patience`` is in seconds.
    """

    def __init__(self, ledger: Ledger, patience: float, prefetch: Mapping[tuple[str, str], int], connect_anew: Callable[[], None]) -> None:
        self._ledger = ledger
        self._patience = patience
        self._consumed = {consumed: _Consumed(count, time.monotonic()) for consumed, count in prefetch.items()}
        self._connect_anew = connect_anew

    def heard(self, queue: str, lane: str) -> None:
        """A message came."""
        if consumed := self._consumed.get((queue, lane)):
            consumed.open += 1
            consumed.heard_at = time.monotonic()
            consumed.times = 1

    def settled(self, queue: str, lane: str) -> None:
        """One of them is done with."""
        if consumed := self._consumed.get((queue, lane)):
            consumed.open -= 1

    async def watch(self) -> None:
        """Look now and then, until cancelled. Of what brings messages, or is full of them, nobody is asked."""
        while True:
            # Workers that have begun together, and miss the same, need not all ask and connect at the same moment.
            await asyncio.sleep(self._patience * random.uniform(1.0, 1.3))
            try:
                await self._look()
            except Exception as error:
                log.debug("hearing.not_asked", error=driver_words(error))

    async def _look(self) -> None:
        if not (quiet := self._quiet()):
            return
        found = await self._ledger.call(partial(unclaimed.consumed_with_unclaimed, consumed=quiet, seconds=self._patience))
        # One may have come while the database was asked.
        if missed := sorted(found.intersection(self._quiet())):
            log.warning("worker.hears_nothing", of=[f"{queue}/{lane}" for queue, lane in missed], consequence="it connects to the broker anew")
            for one in missed:
                self._consumed[one].heard_at = time.monotonic()
                self._consumed[one].times = min(MOST, self._consumed[one].times * 2)
            self._connect_anew()

    def _quiet(self) -> list[tuple[str, str]]:
        return [consumed for consumed, state in self._consumed.items() if state.is_quiet(self._patience)]
