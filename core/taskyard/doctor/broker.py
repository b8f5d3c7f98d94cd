"""Checks of the broker: is it there, does it let us in, may we use our queues, and are they declared as ours?"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from kombu import Connection, Queue

from taskyard.dispatch.app import broker_queue, broker_url, check_broker_url, create_celery, delivery_queue, is_amqp
from taskyard.dispatch.refusals import connection_refusal, queue_refusal
from taskyard.doctor import Finding, fail, ok
from taskyard.errors import ConfigurationError
from taskyard.settings import Settings

#: Seconds that one answer of the broker may take.
SECONDS = 5.0


def check_broker(settings: Settings, queues: Iterable[str]) -> Iterator[Finding]:
    """The broker, and the broker queues of ``queues``. One that is not there yet is not made."""
    try:
        check_broker_url(settings.broker)
    except ConfigurationError as error:
        yield fail("broker", str(error), "Set CELERY_BROKER_URL; for a `taskyard up` with embedded parts, use its --data-dir.")
        return
    app = create_celery(settings)
    with app.connection_for_write(connect_timeout=SECONDS, transport_options=_bounds(settings)) as connection:
        place = str(connection.as_uri())
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=SECONDS)
            if not is_amqp(settings.broker):
                connection.default_channel.queue_delete(f"{settings.broker.prefix}.doctor")
        except Exception as error:
            yield fail("broker", f"{place}: {connection_refusal(error)}", "Start the broker, or correct broker.url (CELERY_BROKER_URL).")
            return
        yield ok("broker", f"{place}{_version(connection)}")
        if is_amqp(settings.broker):
            yield from _check_queues(connection, settings, queues)


def _bounds(settings: Settings) -> dict[str, Any]:
    if is_amqp(settings.broker):
        return {"read_timeout": SECONDS, "write_timeout": SECONDS}
    if broker_url(settings.broker).startswith("redis"):
        return {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS}
    return {}


def _version(connection: Connection) -> str:
    properties = getattr(connection.connection, "server_properties", None) or {}
    return f": {properties['product']} {properties['version']}" if {"product", "version"} <= properties.keys() else ""


def _check_queues(connection: Connection, settings: Settings, queues: Iterable[str]) -> Iterator[Finding]:
    own = Queue(f"{settings.broker.prefix}.doctor-{uuid.uuid4().hex[:12]}", exclusive=True, auto_delete=True, durable=False)
    if refusal := _refusal(connection, own, existing=False):
        yield fail("broker rights", refusal, "Let the broker's user configure, write and read the names that start with `broker.prefix`.")
        return
    yield ok("broker rights", f"queues whose names start with {settings.broker.prefix} may be declared")
    wanted = [broker_queue(settings.broker, queue, lane) for queue in sorted(set(queues)) for lane in ("sync", "async")]
    refused = [refusal for queue in [*wanted, delivery_queue(settings.broker)] if (refusal := _refusal(connection, queue, existing=True))]
    for refusal in refused:
        yield fail("broker queues", refusal, "Do what the sentence says, on the broker.")
    if not refused:
        yield ok("broker queues", f"{len(wanted) + 1}, none refused")


def _refusal(connection: Connection, queue: Queue, *, existing: bool) -> str:
    """Why a queue can't be declared as we do. Only an ``existing`` one is: a refusal closes its channel, so each has one of its own."""
    try:
        with connection.channel() as channel:
            if existing:
                channel.queue_declare(queue.name, passive=True)
            bound = queue.bind(channel)
            bound.queue_declare()
            if not existing:
                bound.delete()
    except Exception as error:
        if existing and getattr(error, "reply_code", None) == 404:
            return ""
        return queue_refusal(queue.name, error)
    return ""
