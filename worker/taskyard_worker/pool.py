"""Taskyard's pool for Celery: hands messages to the engine and tells Celery what became of them.

Celery plugs a pool in by name (``worker_pool``), so ``celery -A taskyard_worker worker`` and all its options work. The
callbacks must run in Celery's own thread, which alone may use the connection: the engine's thread leaves them in a queue and
wakes Celery's event loop through a file descriptor.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import structlog
from celery.concurrency.base import BasePool
from celery.signals import worker_shutting_down
from celery.worker.state import task_ready
from kombu.serialization import loads

from taskyard import failpoints
from taskyard.dispatch.app import DELIVER, is_amqp, parse_broker_queue
from taskyard.errors import TaskyardError
from taskyard.stopping import BROKER_GRACE, Step, StopGuard, worker_budget
from taskyard_worker.broker_connections import GivesNothing, hang_up
from taskyard_worker.engine import Engine, Message
from taskyard_worker.name_lock import NameLock, take_name

log = structlog.get_logger(__name__)


#: Celery's events for how a run of a task, or a try of a delivery, ended.
SHOWN: Final = {
    "succeeded": "task-succeeded",
    "delivered": "task-succeeded",
    "failed": "task-failed",
    "dead": "task-failed",
    "retrying": "task-retried",
    "pending": "task-retried",
    "cancelled": "task-revoked",
}


class TaskPool(BasePool):  # type: ignore[misc]  # Celery has no types
    """Celery's view of the engine. ``limit`` (``-c``) is the number of processes for sync handlers."""

    def __init__(self, *args: Any, initargs: tuple[Any, ...] = (), **options: Any) -> None:
        super().__init__(*args, initargs=initargs, **options)
        self._name = initargs[1] if len(initargs) > 1 else "worker"
        # Celery says so to pools of threads. A transport without an event loop (filesystem) has no connection to guard.
        self._has_event_loop = not options.get("threads", True)
        self._done: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._engine: Engine | None = None
        # What each message that is not worked off is for, by Celery's id of it.
        self._held: dict[str, list[Any]] = {}
        self._deaf = False
        self._guard: StopGuard | None = None
        self._hung_up = False
        self._lock: NameLock | None = None

    def on_start(self) -> None:
        """Start the engine. Called by Celery before it consumes."""
        app = self.app
        # `celery worker` comes here without one.
        self._lock = getattr(app, "taskyard_name", None) or self._take_name()
        consumed = [parse_broker_queue(app.taskyard_settings.broker, name) for name in app.amqp.queues.consume_from]
        queues = sorted({parsed[0] for parsed in consumed if parsed})
        # Others have no consumers that a broker could forget: their queues are asked for each message.
        connect_anew = self._connect_anew if is_amqp(app.taskyard_settings.broker) else None
        self._engine = Engine(app.taskyard_settings, app.taskyard_registry, self._name, queues, self.limit, connect_anew)
        self._engine.start()
        self._lock.keep(self._engine.worker_id, _stop_this_worker)
        self._goodbye = Step("the broker", BROKER_GRACE, self._on_silent_broker)
        self._guard = StopGuard("worker", worker_budget(app.taskyard_settings), self._goodbye)
        worker_shutting_down.connect(self._on_shutting_down)

    def _on_shutting_down(self, **_: Any) -> None:
        """The signal has come. The engine begins to drain at once: Celery first says goodbye to the broker, which may not answer."""
        if self._guard is not None:
            self._guard.begin()
        if self._engine is not None:
            self._engine.begin_stop()

    def _on_silent_broker(self) -> None:
        """Called in the guard's thread, every second: Celery still waits for the broker's answer to its goodbye."""
        if not self._hung_up:
            self._hung_up = True
            hang_up(self.app)
        elif self._engine is None or self._engine.has_ended:
            # A driver that connects anew by itself waits for ever. Everything that counts has been done, in the engine.
            log.warning("worker.leaves", reason="the broker does not answer, and nothing else is left to be done")
            logging.shutdown()
            os._exit(0)

    def on_stop(self) -> None:
        """Stop the engine: Celery's warm shutdown."""
        if self._guard is not None:
            self._guard.enter(Step("running tasks and the database"))
        if self._engine is not None:
            self._engine.stop()
            self._engine = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._guard is not None:
            # Celery closes its channels and connections now.
            self._guard.enter(replace(self._goodbye))

    on_terminate = on_stop

    def _take_name(self) -> NameLock:
        try:
            return take_name(self.app, self._name)
        except TaskyardError as error:
            # Celery logs a traceback of any other exception.
            log.error("worker.not_started", error=str(error))
            raise SystemExit(1) from error

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery's event loop is there (again, after each reconnect)."""
        self._deaf = False
        loop.add_reader(self._wake_in, self._call_back)

    def on_apply(self, target: Any, args: Any, kwargs: Any, **_: Any) -> None:
        """Take a message. ``args`` are what Celery would call its tracer with."""
        name, _id, request, body, content_type, content_encoding = args
        # The request object is the one whose method Celery passes as callback; it acknowledges and reports to Flower.
        celery_request = _["callback"].__self__
        message = self._read(name, request, body, content_type, content_encoding, celery_request)
        if message is None or self._engine is None:
            log.warning("message.garbled", name=name, celery_id=str(_id)[:100])
            _acknowledge(celery_request, "ignored")
        else:
            self._held[str(_id)] = message.ids
            self._engine.offer(message)

    def revoke(self, names: Sequence[str]) -> list[str]:
        """Cancel the tasks that Celery's ids stand for: one task, or those of a message with many that this worker holds. Answers the unknown ids.

        A task by its own id is cancelled wherever it is: any worker may hear of it. Of a message with many, those are that are queued or run.
        """
        singles, bundled, unknown = [], [], []
        for name in names:
            try:
                singles.append(UUID(name))
            except ValueError:
                ids = [id_ for id_ in self._held.get(name, ()) if isinstance(id_, UUID)]
                bundled += ids
                unknown += [] if ids else [name]
        if self._engine is not None and (singles or bundled):
            self._engine.cancel(singles, bundled)
        return unknown

    def _read(self, name: str, request: Any, body: Any, content_type: str, content_encoding: str, celery_request: Any) -> Message | None:
        """The message, or None if it is none of ours: the broker is hostile ground."""
        try:
            (ids,), _, _ = loads(body, content_type, content_encoding, accept={"json", "application/json"}) if isinstance(body, str | bytes) else body
            routing_key = request["delivery_info"]["routing_key"]
            if name == DELIVER:
                queue, lane, ids = "", "deliveries", [int(id_) for id_ in ids]
            else:
                parsed = parse_broker_queue(self.app.taskyard_settings.broker, routing_key)
                if parsed is None:
                    return None
                (queue, lane), ids = parsed, [UUID(id_) for id_ in ids]
        except Exception:
            return None
        if not 0 < len(ids) <= 10_000:
            return None
        began = time.monotonic()

        def ended(state: str) -> None:
            self._held.pop(str(celery_request.id), None)
            _show(celery_request, state, len(ids), time.monotonic() - began)

        return Message(
            queue,
            lane,
            ids,
            on_started=lambda: self._in_celery(lambda: celery_request.on_accepted(os.getpid(), time.monotonic())),
            on_settled=lambda state: self._in_celery(lambda: _acknowledge(celery_request, state)),
            on_ended=lambda state: self._in_celery(lambda: ended(state)),
        )

    def _in_celery(self, callback: Callable[[], None]) -> None:
        if not self._has_event_loop:
            callback()
            return
        # Before Celery's loop is there, it waits for it: a message may come while Celery still declares queues on the same connection.
        self._done.append(callback)
        # A full pipe is full of wake-ups already.
        with suppress(BlockingIOError):
            os.write(self._wake_out, b"x")

    def _connect_anew(self) -> None:
        """Have Celery drop its connection and make a new one, with new consumers. While there is none, it does so by itself."""
        self._deaf = True
        # Only a wake-up.
        self._in_celery(lambda: None)

    def _call_back(self, *_: Any) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_in, 65536)
        while self._done:
            callback = self._done.popleft()
            try:
                callback()
            except Exception as error:
                # A connection that broke meanwhile: the broker sends the message again, and its claim matches nothing.
                log.warning("message.not_acknowledged", error=repr(error))
        if self._deaf:
            self._deaf = False
            # Leaves Celery's event loop as a connection that was lost does.
            raise GivesNothing("the broker gives nothing, although tasks are queued")


def _stop_this_worker() -> None:
    """As an operator would."""
    os.kill(os.getpid(), signal.SIGTERM)


def _acknowledge(request: Any, state: str) -> None:
    """The broker may forget the message."""
    task_ready(request, successful=state == "succeeded")
    failpoints.hit("ack.unsent")
    request.acknowledge()
    failpoints.hit("ack.sent")


def _show(request: Any, state: str, count: int, runtime: float) -> None:
    """Tell Flower how a message's run ended. Postgres has the truth; this is for watching.

    What goes back in line without an end, or was for nothing, is no event: a later message with the same id has the end. A message for many tasks
    has one name for all of them, so it has succeeded when it is worked off, however each task ended.
    """
    if state not in SHOWN:
        return
    if count > 1:
        request.send_event("task-succeeded", result=f"a message for {count} tasks: see Taskyard for how each ended", runtime=runtime)
    elif SHOWN[state] == "task-failed":
        request.send_event("task-failed", exception=f"{state}: see the task", traceback="")
    elif SHOWN[state] == "task-retried":
        request.send_event("task-retried", exception="it is tried again: see the task", traceback="")
    elif SHOWN[state] == "task-revoked":
        request.send_event("task-revoked", terminated=True, signum=None, expired=False)
    else:
        request.send_event("task-succeeded", result=state, runtime=runtime)
