"""Direct hints: a process that has just committed a task tells a worker of it itself, if the task's line is open.

A hint is sent by a thread of its own, without a confirmation, and is dropped when in doubt: nobody ever waits for the broker, and a lost
hint costs a moment. The process has dispatchers look at the line a little later, as if there had been no hint.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog
from celery import Celery
from kombu import Connection, Queue

from taskyard import failpoints
from taskyard.backoff import Backoff
from taskyard.database_errors import driver_words
from taskyard.dispatch import open_lines
from taskyard.dispatch.app import RUN, broker_queue, is_amqp
from taskyard.dispatch.messages import send
from taskyard.dispatch.open_lines import GOOD_FOR, Line
from taskyard.settings import BrokerSettings

log = structlog.get_logger(__name__)

#: Hints that wait for the thread at most. More come at once than it can send: the dispatcher puts many into one message.
MOST_WAITING: Final = 32
#: Seconds until a broker that was away is tried again, at first and at most.
AWAY: Final = (0.5, 30.0)
#: RabbitMQ need not write it to disk.
TRANSIENT: Final = 1


@dataclass(frozen=True, slots=True)
class _Hint:
    line: Line
    id: UUID
    type: str


class DirectHints:
    """Sends direct hints for one process. ``on_dropped`` is called, in the thread that sends, with a line whose hint could not be sent."""

    def __init__(self, app: Celery, settings: BrokerSettings, on_dropped: Callable[[Line], None]) -> None:
        self._app = app
        self._settings = settings
        self._on_dropped = on_dropped
        self._open_until: dict[Line, float] = {}
        self._waiting: queue.SimpleQueue[_Hint | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._producer: Any = None
        self._queues: dict[Line, Queue] = {}
        self._backoff = Backoff(*AWAY)
        self._away_until = 0.0

    def hear(self, payload: str) -> None:
        """News of a line, as a payload of the channel LINES."""
        with contextlib.suppress(ValueError):
            line, is_open = open_lines.read(payload)
            self._open_until[line] = time.monotonic() + GOOD_FOR if is_open else 0.0

    def offer(self, line: Line, task_id: UUID, type_: str) -> bool:
        """Send a hint for a ready task, which is committed. Returns at once.

        False: its line is not open, or the broker is away, or too many hints wait. Dispatchers have to be told of the task.
        """
        now = time.monotonic()
        if now >= self._open_until.get(line, 0.0) or now < self._away_until or self._waiting.qsize() >= MOST_WAITING:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="direct-hints", daemon=True)
            self._thread.start()
        self._waiting.put(_Hint(line, task_id, type_))
        return True

    def close(self) -> None:
        """Send what waits, and let the broker go; bounded by ``broker.confirm_timeout``."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(self._settings.confirm_timeout)

    def _work(self) -> None:
        while (hint := self._waiting.get()) is not None:
            failpoints.hit("hint.unsent")
            try:
                if time.monotonic() < self._away_until:
                    self._on_dropped(hint.line)
                    continue
                self._send(hint)
                self._backoff.reset()
            except Exception as error:
                wait = self._backoff.next()
                self._away_until = time.monotonic() + wait
                log.warning("hints.not_sent", error=driver_words(error), seconds=round(wait, 1), consequence="dispatchers are told of tasks instead")
                self._disconnect()
                self._on_dropped(hint.line)
        self._disconnect(politely=True)

    def _send(self, hint: _Hint) -> None:
        if self._producer is None:
            self._connect()
        if (target := self._queues.get(hint.line)) is None:
            target = self._queues[hint.line] = broker_queue(self._settings, *hint.line)
        id_ = str(hint.id)
        send(self._app, self._producer, RUN, target, [id_], id_, hint.type, delivery_mode=TRANSIENT)
        failpoints.hit("hint.sent")

    def _connect(self) -> None:
        seconds = self._settings.confirm_timeout
        bounds = {"write_timeout": seconds, "read_timeout": seconds} if is_amqp(self._settings) else {"socket_timeout": seconds}
        self._connection = self._app.connection_for_write(transport_options=bounds)
        self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=seconds)
        self._producer = self._app.amqp.Producer(self._connection.channel())

    def _disconnect(self, *, politely: bool = False) -> None:
        """Drop the connection. Politely, the broker is told, and has to answer."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is broken, or the broker doesn't answer
                if not politely and is_amqp(self._settings) and connection.connected:
                    connection.connection.collect()
                connection.release()
