"""Celery bootsteps: consumers beside Celery's own, each with a channel and a prefetch count that fits what it carries.

Celery's consumer takes the sync lanes, with one message a process. Async handlers run by the hundred, so their lanes have a
consumer of their own, and so have notifications: none can fill another's slots.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from celery import bootsteps
from celery.app.amqp import AMQP
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control
from celery.worker.state import maybe_shutdown
from kombu import Consumer

from taskyard.backoff import Backoff
from taskyard.database_errors import driver_words
from taskyard.dispatch.app import broker_queue, delivery_queue, parse_broker_queue
from taskyard.dispatch.refusals import connection_refusal
from taskyard_worker.broker_connections import GivesNothing
from taskyard_worker.broker_queues import BrokerQueues

log = structlog.get_logger(__name__)


#: Seconds until a new connection, at first and at most, and for which one must last to count as one that worked.
RECONNECT, LASTED = (0.5, 30.0), 60.0


def _pause(seconds: float) -> None:
    """Wait, unless the worker is told to stop. Raises WorkerShutdown then."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        maybe_shutdown()
        time.sleep(min(0.2, left))


def _start_or_do_without(start: Callable[[Any], None], consumer: Any) -> None:
    """Start Celery's remote control, if the broker's user may use its queues. Flower needs it; tasks do not."""
    try:
        start(consumer)
    except consumer.channel_errors as error:
        log.warning("worker.no_remote_control", error=driver_words(error), consequence="Flower and `celery control` do not see this worker")


class HintQueues(AMQP):  # type: ignore[misc]  # Celery has no types
    """Celery's queues, of which a worker consumes those that the broker does not refuse."""

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **options: Any) -> Any:  # Celery's name
        """A consumer of the sync lanes. ``channel`` is the worker's connection."""
        worker = self.app.taskyard_consumer
        usable = worker.broker_queues.usable(channel, queues or list(self.queues.consume_from.values()), lambda: worker.task_consumer)
        return self.Consumer(channel, accept=accept or self.app.conf.accept_content, queues=usable, **options)


class HintConsumer(CeleryConsumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer without its delayed delivery: for quorum queues that declares 28 exchanges and queues for ETAs, and
    Taskyard's schedules live in Postgres. And no message ends it: the broker is hostile ground."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]  # Celery has no types
        default_steps = tuple(step for step in CeleryConsumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app.taskyard_consumer = self
        self.broker_queues = BrokerQueues(self)
        self._reconnects = Backoff(*RECONNECT)
        self._connected_at = float("-inf")
        for step in self.steps:
            if isinstance(step, Control):
                step.start = partial(_start_or_do_without, step.start)

    def ensure_connected(self, conn: Any) -> Any:
        """A connection, once the broker takes one. Kombu waits out an absent broker; one that refuses the user or the virtual host is waited out here."""
        refused = Backoff(*RECONNECT)
        while True:
            try:
                connected = super().ensure_connected(conn)
            except Exception as error:
                wait = refused.next()
                log.error("worker.broker_refuses", broker=conn.as_uri(), error=connection_refusal(error), seconds=round(wait, 1))
                _pause(wait)
            else:
                self._connected_at = time.monotonic()
                return connected

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """A connection was lost. The next one is made at once if this one lasted, or if what ended it is left out then; else after a growing pause."""
        super().on_connection_error_after_connected(exc)
        if self.broker_queues.blames_one(exc) or isinstance(exc, GivesNothing):
            return
        if time.monotonic() - self._connected_at > LASTED:
            self._reconnects.reset()
            return
        _pause(self._reconnects.next())

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's own, which a garbled message can make raise: a body ``null`` without headers would end the worker, and the next one."""
        handle = super().create_task_handler(*args, **kwargs)
        # Kombu counts KeyError among what a lost Redis raises; here it says that a header is missing.
        broken = tuple({*self.connection_errors, *self.channel_errors} - {KeyError})

        def on_message(message: Any) -> None:
            try:
                handle(message)
            except broken:
                raise
            except Exception as error:
                log.warning("message.garbled", error=repr(error), headers=str(message.headers)[:200])
                if not message.acknowledged:
                    message.reject_log_error(logging.getLogger(__name__), self.connection_errors)

        return on_message


class _Lanes(bootsteps.ConsumerStep):  # type: ignore[misc]  # Celery has no types
    """Starts after Celery's own consumer, whose task strategies it uses."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, c: Any) -> None:
        self._parent = c
        super().start(c)

    def _consumer(self, channel: Any, queues: list[Any], prefetch: int) -> Consumer:
        parent = self._parent
        usable = parent.broker_queues.usable(parent.connection, queues, lambda: self.consumers[0])
        return Consumer(channel, usable, on_message=parent.create_task_handler(), accept=["json"], prefetch_count=prefetch)


class AsyncLanes(_Lanes):
    """Consumes the async lanes of the queues that this worker serves."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        app = self._parent.app
        settings = app.taskyard_settings
        served = [parse_broker_queue(settings.broker, name) for name in app.amqp.queues.consume_from]
        queues = [broker_queue(settings.broker, parsed[0], "async") for parsed in served if parsed]
        return [self._consumer(channel, queues, settings.worker.async_slots)] if queues else []


class Deliveries(_Lanes):
    """Consumes the notifications."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        settings = self._parent.app.taskyard_settings
        return [self._consumer(channel, [delivery_queue(settings.broker)], settings.deliveries.concurrency)]
