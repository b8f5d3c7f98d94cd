"""An end to waits on connections over which nothing comes any more.

A server that is stopped, or a network that swallows packets, leaves a psycopg call waiting for ever: ``statement_timeout`` is the
server's. One thread watches an engine's connections that are in use, and shuts down the socket of one that is in use for too long;
the call that waits on it raises then.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.event import listen

from taskyard.settings import DatabaseSettings

log = structlog.get_logger(__name__)


def bound_waits(engine: Engine, settings: DatabaseSettings) -> None:
    """From now until the engine is disposed of, no use of one of its connections lasts longer than a statement may and a bit."""
    _Watchman(engine, settings.statement_timeout + settings.connect_timeout)


class _Watchman:
    def __init__(self, engine: Engine, seconds: float) -> None:
        self._seconds = seconds
        self._in_use: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        listen(engine, "checkout", self._on_checkout)
        listen(engine, "checkin", self._on_checkin)
        listen(engine, "engine_disposed", lambda _: self._over.set())
        threading.Thread(target=self._watch, name="hangs", daemon=True).start()

    def _on_checkout(self, _connection: Any, record: Any, _proxy: Any) -> None:
        with self._lock:
            self._in_use[id(record)] = time.monotonic(), record

    def _on_checkin(self, _connection: Any, record: Any) -> None:
        with self._lock:
            self._in_use.pop(id(record), None)

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / 10):
            # Under the lock no connection goes back, so none that is somebody else's by now is hit.
            with self._lock:
                for key, (since, record) in list(self._in_use.items()):
                    if time.monotonic() - since > self._seconds:
                        del self._in_use[key]
                        log.error("database.silent", seconds=round(self._seconds, 1), consequence="its connection is cut")
                        cut(record.dbapi_connection)


def cut(connection: psycopg.Connection[Any] | None) -> None:
    """Break a connection: whoever waits for its server gets an error."""
    with suppress(psycopg.Error, OSError):
        if connection is not None:
            with socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
