"""The broker queues that a worker consumes, of which the broker may refuse some: the others are served meanwhile.

A queue that exists with other arguments, or that the broker's user may not use, closes the channel that asks for it. So each queue is declared on a
channel of its own first. A refused one is left out, named in the log with what to do, and tried again after growing pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from kombu import Consumer, Queue

from taskyard.backoff import Backoff
from taskyard.dispatch.refusals import FIRST, LONGEST, queue_refusal

log = structlog.get_logger(__name__)


class BrokerQueues:
    """Those of one worker, over all its connections. For Celery's own thread alone; ``worker`` is Celery's consumer."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._names: set[str] = set()
        self._refused: dict[str, Backoff] = {}

    def usable(self, connection: Any, queues: Sequence[Queue], consumer_of: Callable[[], Consumer]) -> list[Queue]:
        """Those of these queues that can be consumed now. ``consumer_of`` gives the consumer that the others are added to as they are mended."""
        usable = []
        for queue in queues:
            self._names.add(queue.name)
            wait = self._try(connection, queue)
            if wait is None:
                usable.append(queue)
            else:
                self._try_later(wait, connection, queue, consumer_of)
        return usable

    def blames_one(self, error: Exception) -> bool:
        """Does this error name one of the queues? Then the next connection asks more closely whether it can be consumed."""
        words = str(error)
        name = next((name for name in self._names if f"'{name}'" in words), None)
        if name is not None:
            self._refused.setdefault(name, Backoff(FIRST, LONGEST))
        return name is not None

    def _try(self, connection: Any, queue: Queue) -> float | None:
        """The seconds until a queue should be tried again; None: it can be consumed.

        One that was refused before is consumed for a moment, for only that asks for the right to read. What it brings goes back with its channel.
        """
        try:
            with connection.channel() as channel:
                bound = queue.bind(channel)
                bound.declare()
                if queue.name in self._refused:
                    bound.consume(consumer_tag=f"try.{queue.name}", callback=lambda _: None, no_ack=False)
        except connection.channel_errors as error:
            wait = self._refused.setdefault(queue.name, Backoff(FIRST, LONGEST)).next()
            log.error("worker.queue_refused", error=queue_refusal(queue.name, error), seconds=round(wait, 1), consequence="the other queues are served")
            return wait
        if self._refused.pop(queue.name, None) is not None:
            log.info("worker.queue_works_again", queue=queue.name)
        return None

    def _try_later(self, wait: float, connection: Any, queue: Queue, consumer_of: Callable[[], Consumer]) -> None:
        def again() -> None:
            # After a connection was lost, the next one begins with all queues.
            if self._worker.connection is connection:
                self._try_again(connection, queue, consumer_of)

        self._worker.timer.call_after(wait, again)

    def _try_again(self, connection: Any, queue: Queue, consumer_of: Callable[[], Consumer]) -> None:
        wait = self._try(connection, queue)
        if wait is not None:
            self._try_later(wait, connection, queue, consumer_of)
            return
        consumer = consumer_of()
        try:
            consumer.add_queue(queue)
            consumer.consume()
        except connection.channel_errors as error:
            # The channel that all its queues share is closed. Celery's timer would only log this.
            raise ConnectionResetError(str(error)) from error
