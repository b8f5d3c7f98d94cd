"""The sockets of a Celery worker's connections to the broker, to be cut where a goodbye would wait for an answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import structlog
from celery import Celery

log = structlog.get_logger(__name__)


class GivesNothing(ConnectionResetError):
    """The broker gives nothing, although tasks are queued. A new connection, with new consumers, cures it."""


def hang_up(app: Celery) -> None:
    """Cut the connections of this app's worker. Whoever waits for the broker's answer on one of them fails at once, in whatever thread.

    The broker gives to others what this worker had not acknowledged.
    """
    if found := list(_sockets(getattr(app, "taskyard_consumer", None))):
        log.warning("worker.hangs_up", connections=len(found), reason="the broker does not answer")
    for each in found:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _sockets(consumer: Any) -> Iterator[socket.socket]:
    """The open sockets. By private names alone: the public ones of Kombu and py-amqp connect anew where there is no connection."""
    dispatcher = getattr(consumer, "event_dispatcher", None)
    for connection in (getattr(consumer, "connection", None), getattr(dispatcher, "connection", None)):
        driver = getattr(connection, "_connection", None)
        if (amqp := getattr(getattr(driver, "_transport", None), "sock", None)) is not None:
            yield amqp
        # With Redis, each channel has clients, which take their connections from its pools.
        for channel in list(getattr(getattr(connection, "_transport", None), "channels", None) or ()):
            kept = vars(channel)
            clients = [getattr(kept.get(name), "connection", None) for name in ("client", "subclient")]
            pools = [kept.get(name) for name in ("_pool", "_async_pool")]
            pooled = [each for pool in pools for name in ("_in_use_connections", "_available_connections") for each in list(getattr(pool, name, ()))]
            yield from {each._sock for each in (*clients, *pooled) if getattr(each, "_sock", None) is not None}
