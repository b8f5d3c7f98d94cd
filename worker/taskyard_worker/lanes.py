"""A lane's slots and what waits for them: pure bookkeeping in the engine's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

if TYPE_CHECKING:
    from taskyard_worker.engine import Message

log = structlog.get_logger(__name__)

#: Seconds that an offer waits for a slot before it goes back in line, for a worker that has one.
PATIENCE = 1.0


@dataclass(eq=False, slots=True)
class Offer:
    """Hints that take one slot together: a whole message for a process, one id for an event loop."""

    ids: list[UUID]
    message: Message


class Lane:
    """Hands offers to ``claim`` as slots allow, all that can be at once, and gives back those that wait too long."""

    def __init__(
        self,
        name: str,
        slots: int,
        claim: Callable[[Lane, str, list[Offer]], Awaitable[None]],
        withdraw: Callable[[Lane, list[Offer]], Awaitable[None]],
    ) -> None:
        self.name = name
        self._free = slots
        self._claim = claim
        self._withdraw = withdraw
        self._waiting: deque[Offer] = deque()
        self._pumping = False
        self._closed = False
        self._tasks: set[asyncio.Future[None]] = set()

    def offer(self, message: Message) -> None:
        """Take a message; it is claimed at once if a slot is free."""
        offers = [Offer(message.ids, message)] if self.name == "sync" else [Offer([id_], message) for id_ in message.ids]
        self._waiting.extend(offers)
        self._pump_soon()
        if self._free < len(self._waiting):
            asyncio.get_running_loop().call_later(PATIENCE, self._give_back, offers)

    def free_slots(self, count: int) -> None:
        """Slots became free."""
        self._free += count
        self._pump_soon()

    def close(self) -> None:
        """Claim no more. Offers that wait are left to the broker, which gives them to others."""
        self._closed = True
        self._waiting.clear()

    async def settled(self, seconds: float) -> None:
        """Wait for the claims that are under way, whose tasks will run here."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _pump_soon(self) -> None:
        # At the end of this turn of the loop, so that what arrived together is claimed together.
        if not self._pumping and self._waiting and self._free > 0:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._closed:
            return
        queues: dict[str, list[Offer]] = {}
        while self._waiting and self._free > 0:
            offer = self._waiting.popleft()
            queues.setdefault(offer.message.queue, []).append(offer)
            self._free -= 1
        for queue, offers in queues.items():
            self._start(self._claim(self, queue, offers))

    def _give_back(self, offers: list[Offer]) -> None:
        late = set(offers).intersection(self._waiting)
        if late:
            self._waiting = deque(offer for offer in self._waiting if offer not in late)
            self._start(self._withdraw(self, [offer for offer in offers if offer in late]))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("lane.error", lane=self.name, error=repr(error), exc_info=error)
