"""Celery bootsteps: consumers beside Celery's own, each with a channel and a prefetch count that fits what it carries.

Celery's consumer takes the sync lanes, with one message a process. Async handlers run by the hundred, so their lanes have a
consumer of their own, and so have notifications: none can fill another's slots.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import structlog
from celery import bootsteps
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Consumer

from taskyard.dispatch.app import broker_queue, delivery_queue, parse_broker_queue

log = structlog.get_logger(__name__)


class HintConsumer(CeleryConsumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer without its delayed delivery: for quorum queues that declares 28 exchanges and queues for ETAs, and
    Taskyard's schedules live in Postgres. And no message ends it: the broker is hostile ground."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]  # Celery has no types
        default_steps = tuple(step for step in CeleryConsumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery"))

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
        return Consumer(channel, queues, on_message=parent.create_task_handler(), accept=["json"], prefetch_count=prefetch)


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
