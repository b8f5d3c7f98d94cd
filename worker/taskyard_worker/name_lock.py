"""A lock on a worker's name, so that no two live workers have one.

RabbitMQ gives a worker's control queue, which has its name, to one connection alone: a second worker of the name would connect anew for ever.

The lock is PostgreSQL's, an advisory one of a session. It is free as soon as the connection ends, and with that when the process dies. A host
that vanished leaves its connection behind for a while: then the worker's heartbeat tells that it is gone.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
import structlog
from celery import Celery
from kombu.exceptions import ChannelError

from taskyard.database import connect
from taskyard.database_errors import driver_words
from taskyard.dispatch.app import HEARTBEAT, is_amqp
from taskyard.errors import TaskyardError
from taskyard.settings import Settings
from taskyard_worker.names import checked

log = structlog.get_logger(__name__)

#: Seconds between two looks at a name that is taken.
LOOK_EVERY: Final = 0.2
#: The id of no worker.
NOBODY: Final = UUID(int=0)
#: Seconds for which RabbitMQ may take a connection for alive whose other end has vanished: two heartbeats and a bit.
BROKER_FORGETS: Final = 2.5 * HEARTBEAT
#: AMQP's reply code for a queue that is another connection's alone.
RESOURCE_LOCKED: Final = 405

_HOLDER = """
SELECT a.pid, a.application_name AS session, COALESCE(a.client_addr::text, 'this machine') AS address,
  EXTRACT(epoch FROM clock_timestamp() - a.backend_start)::float8 AS connected,
  w.host, EXTRACT(epoch FROM w.beat_at)::float8 AS beat, EXTRACT(epoch FROM clock_timestamp() - w.beat_at)::float8 AS silent
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN LATERAL (SELECT host, beat_at FROM workers WHERE name = %(name)s AND id <> %(own)s ORDER BY beat_at DESC LIMIT 1) w ON true
WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.granted AND l.objsubid = 1
  AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a name: the backend of its lock, and what the row of a worker of that name tells, if there is one. Times in seconds."""

    pid: int
    session: str
    address: str
    connected: float
    host: str | None
    beat: float | None
    silent: float | None

    def is_gone(self, silence: float) -> bool:
        """Did its worker fall silent? One that is starting has no row yet."""
        return self.connected > silence and (self.silent is None or self.silent > silence)

    def has_beaten_since(self, first: Holder) -> bool:
        """Does it live for sure?"""
        return self.beat is not None and first.beat is not None and self.beat > first.beat


class NameLock:
    """One worker's hold on its name. ``take`` it before the worker starts, ``keep`` it while it runs."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.name = name
        self._settings = settings
        self._silence = settings.dispatch.worker_silence
        # In pg_stat_activity it tells our own lost connections from others'.
        self._session = f"name-{uuid.uuid4().hex[:12]}"
        self._key = int.from_bytes(hashlib.sha256(f"taskyard worker {name}".encode()).digest()[:8], signed=True)
        self._connection: psycopg.Connection[Any] | None = None
        self._held = False
        self._over = threading.Event()
        self._own: Callable[[], UUID] = lambda: NOBODY

    def take(self) -> None:
        """Take the name, or wait until it is clear who has it: for a heartbeat of whoever lives, and ``worker_silence`` for whoever does not.

        While the database is away nothing is taken: :meth:`keep` does that later.

        Raises:
            TaskyardError: another worker has the name.
        """
        until = time.monotonic() + self._silence + 2 * self._settings.worker.heartbeat
        try:
            while holder := self._take():
                if time.monotonic() > until:
                    self._close()
                    raise TaskyardError(_taken(self.name, holder))
        except psycopg.Error as error:
            log.warning("worker.name_not_taken", name=self.name, error=driver_words(error), consequence="it is taken when the database is back")
            self._close()

    def _take(self) -> Holder | None:
        """Take the name, or answer who has had it for a while and neither beats nor is gone. Raises TaskyardError: whoever has it beats."""
        first: Holder | None = None
        until = time.monotonic() + 2 * self._settings.worker.heartbeat
        while holder := self._holder():
            first = first or holder
            if holder.is_gone(self._silence):
                log.warning("worker.name_freed", name=self.name, address=holder.address, reason="the worker that had it fell silent")
                self._end(holder)
            elif holder.has_beaten_since(first):
                self._close()
                raise TaskyardError(_taken(self.name, holder))
            elif time.monotonic() > until:
                break
            self._over.wait(LOOK_EVERY)
        return holder

    def _holder(self) -> Holder | None:
        """Who has the name, if it is not us by now."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._settings.database, role=self._session)
        while not self._locked(self._connection):
            high, low = self._key >> 32 & 0xFFFFFFFF, self._key & 0xFFFFFFFF
            row = self._connection.execute(_HOLDER, {"name": self.name, "own": self._own(), "high": high, "low": low}).fetchone()
            # Without a row, it was given back just now.
            if row is not None:
                holder = Holder(*row)
                if not holder.session.endswith(self._session):
                    return holder
                # A connection of ours that broke, and whose end the server has not noticed.
                self._end(holder)
                self._over.wait(LOOK_EVERY)
        self._held = True
        return None

    def _locked(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone()
        return row is not None and bool(row[0])

    def _end(self, holder: Holder) -> None:
        assert self._connection is not None
        with suppress(psycopg.errors.InsufficientPrivilege):
            self._connection.execute("SELECT pg_terminate_backend(%s)", (holder.pid,))

    def keep(self, own: Callable[[], UUID], on_taken: Callable[[], None]) -> None:
        """From now on take the name again whenever its connection is lost, in a thread of its own.

        ``own`` answers the worker's id, whose row is not another's. ``on_taken`` is called, once, when another worker was quicker.
        """
        self._own = own
        threading.Thread(target=self._keep, args=(on_taken,), name="worker-name", daemon=True).start()

    def _keep(self, on_taken: Callable[[], None]) -> None:
        while not self._over.wait(self._settings.worker.heartbeat):
            try:
                if self._held and self._connection is not None:
                    self._connection.execute("SELECT 1")
                else:
                    self._take()
            except psycopg.Error as error:
                log.warning("worker.name_connection_lost", name=self.name, error=driver_words(error))
                self._close()
            except TaskyardError as error:
                log.error("worker.name_taken", name=self.name, error=str(error), consequence="this worker stops")
                on_taken()
                return

    def release(self) -> None:
        """Give the name back."""
        self._over.set()
        self._close()

    def _close(self) -> None:
        self._held = False
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _taken(name: str, holder: Holder) -> str:
    since = f"its heartbeat came {holder.silent:.0f} s ago" if holder.silent is not None else "it is starting"
    where = f"on {holder.host}" if holder.host else f"from {holder.address}"
    return f"Another worker named {name} runs {where} ({since}). Give each worker a name of its own with --name, or leave --name out."


def take_name(app: Celery, name: str) -> NameLock:
    """Take a worker's name before it starts. Raises TaskyardError: another worker has it; ConfigurationError: it is none."""
    lock = NameLock(app.taskyard_settings, checked(name))
    lock.take()
    try:
        await_control_queue(app, name)
    except TaskyardError:
        lock.release()
        raise
    return lock


def await_control_queue(app: Celery, name: str) -> None:
    """Wait while RabbitMQ takes another connection for the worker of this name: one that vanished is forgotten after some heartbeats.

    Raises:
        TaskyardError: it does not go away: a worker of another installation on the same broker has the name.
    """
    if not is_amqp(app.taskyard_settings.broker):
        return
    until = time.monotonic() + BROKER_FORGETS
    waiting = False
    while _is_locked(app, f"{name}.celery.pidbox"):
        if time.monotonic() > until:
            raise TaskyardError(
                f"Another worker named {name} is connected to this broker, with another database. Give each worker on a broker a name of its own with --name."
            )
        if not waiting:
            log.warning("worker.name_waits", name=name, reason="the broker still has a connection of a worker with this name", seconds=BROKER_FORGETS)
        waiting = True
        time.sleep(5 * LOOK_EVERY)


def _is_locked(app: Celery, queue: str) -> bool:
    """Does a queue belong to another connection alone? A broker that is away, or refuses to tell, says nothing."""
    connection = app.connection_for_read()
    try:
        with connection, connection.channel() as channel:
            channel.queue_declare(queue, passive=True)
    except (ChannelError, *connection.channel_errors, *connection.connection_errors) as error:
        return getattr(error, "reply_code", getattr(error, "code", None)) == RESOURCE_LOCKED
    return False
