"""What the tests of the lifecycle share: tasks brought to any status by the verbs themselves, and a look at what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import uuid_utils.compat as uuid7
from sqlalchemy import Connection, Engine, RowMapping, text

from taskyard import lifecycle
from taskyard.records import Finished, NewTask

TYPES = ("demo.work", "demo.other")
#: Seconds after which a queued task counts as swept; no test waits for it.
STALE = 30.0
PARK_DELAY = 60.0
MAX_LOST = 3


def new(**fields: Any) -> NewTask:
    """A task that lacks nothing."""
    given: dict[str, Any] = {
        "id": uuid7.uuid7(),
        "type": "demo.work",
        "payload": {"n": 1},
        "queue": "default",
        "lane": "sync",
        "priority": 5,
        "timeout": 60.0,
        "max_attempts": 3,
    }
    return NewTask(**given | fields)


@dataclass(frozen=True)
class Life:
    """The verbs, each in a transaction of its own."""

    engine: Engine

    def submit(self, **fields: Any) -> UUID:
        task = new(**fields)
        with self.engine.begin() as connection:
            assert task.id in lifecycle.submit(connection, [task])
        return task.id

    def worker(self, name: str = "w1", silent: float = 0, queues: Sequence[str] = ("default",)) -> UUID:
        """A known worker that last beat ``silent`` seconds ago."""
        worker = uuid7.uuid7()
        with self.engine.begin() as connection:
            lifecycle.register_worker(connection, worker, name, queues, {"sync": 1})
        self.execute("UPDATE workers SET beat_at = now() - :silent * interval '1 second' WHERE id = :id", id=worker, silent=silent)
        return worker

    def dispatch(self, queue: str = "default", lane: str = "sync", room: int = 100, stale: float = STALE) -> list[lifecycle.Hint]:
        with self.engine.begin() as connection:
            return list(lifecycle.dispatch(connection, queue, lane, room, stale).hints)

    def claim(self, worker: UUID, *ids: UUID, queue: str = "default", lane: str = "sync", types: Sequence[str] = TYPES) -> list[RowMapping]:
        with self.engine.begin() as connection:
            return lifecycle.claim(connection, worker, queue, lane, ids, types, PARK_DELAY)

    def finish(self, *finished: Finished) -> list[RowMapping]:
        with self.engine.begin() as connection:
            return lifecycle.finish(connection, finished, MAX_LOST)

    def reap(self, silence: float = 15, max_lost: int = MAX_LOST) -> list[RowMapping]:
        with self.engine.begin() as connection:
            return lifecycle.reap(connection, silence, max_lost)

    def person(self, verb: str, task: UUID, *arguments: Any, namespace: str = "default") -> RowMapping:
        """Do one of lifecycle.PERSONAL_VERBS."""
        with self.engine.begin() as connection:
            return cast(RowMapping, getattr(lifecycle, verb)(connection, namespace, task, *arguments))

    def queued(self, **fields: Any) -> UUID:
        task = self.submit(**fields)
        self.dispatch(fields.get("queue", "default"), fields.get("lane", "sync"))
        assert self.row(task)["status"] == "queued"
        return task

    def running(self, worker: UUID | None = None, **fields: Any) -> UUID:
        task = self.queued(**fields)
        self.run(task, worker)
        return task

    def run(self, task: UUID, worker: UUID | None = None) -> RowMapping:
        """Let a pending or queued task be claimed."""
        row = self.row(task)
        self.dispatch(row["queue"], row["lane"])
        (claimed,) = self.claim(worker or self.worker(), task, queue=row["queue"], lane=row["lane"])
        assert claimed["status"] == "running"
        return claimed

    def end(self, task: UUID, outcome: str, **fields: Any) -> RowMapping:
        """Finish a running task's present run."""
        (row,) = self.finish(self.finished(task, outcome, **fields))
        return row

    def finished(self, task: UUID, outcome: str, **fields: Any) -> Finished:
        return Finished(task, self.row(task)["fence"], cast(Any, outcome), **fields)

    def in_status(self, status: str, **fields: Any) -> UUID:
        """A task that came to ``status`` by the verbs alone."""
        if status == "scheduled":
            return self.submit(delay=3600.0, **fields)
        if status in ("queued", "running"):
            return self.queued(**fields) if status == "queued" else self.running(**fields)
        if status in ("succeeded", "failed"):
            task = self.running(**fields)
            self.end(task, status, error={"code": "wrong", "message": "it went wrong"} if status == "failed" else None)
            return task
        if status == "expired":
            task = self.submit(expires_at="2001-01-01T00:00:00Z", **fields)
            with self.engine.begin() as connection:
                lifecycle.expire(connection)
            return task
        task = self.submit(**fields)
        if verb := {"held": "hold", "cancelled": "cancel"}.get(status):
            self.person(verb, task)
        return task

    def row(self, task: UUID) -> RowMapping:
        with self.engine.connect() as connection:
            return connection.execute(text("SELECT * FROM tasks WHERE id = :id"), {"id": task}).mappings().one()

    def status(self, task: UUID) -> str:
        return str(self.row(task)["status"])

    def events(self, task: UUID) -> list[RowMapping]:
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT type, attempt, data, namespace FROM events WHERE task_id = :id ORDER BY id"), {"id": task}).mappings())

    def event_types(self, task: UUID) -> list[str]:
        return [event["type"].removeprefix("task.") for event in self.events(task)]

    def last_event(self, task: UUID) -> RowMapping:
        return self.events(task)[-1]

    def execute(self, statement: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def column(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), values).scalars())

    def pass_time(self, task: UUID, column: str) -> None:
        """Let the moment of a column be a minute ago."""
        self.execute(f"UPDATE tasks SET {column} = now() - interval '1 minute' WHERE id = :id", id=task)

    def await_lock(self, waiter: Future[Any]) -> None:
        """Return when a statement in this database waits for a lock; fail if ``waiter`` is done without."""
        while not self.column("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"):
            assert not waiter.done(), waiter.result()

    def pause(self, queue: str = "default") -> None:
        self.execute("INSERT INTO queues (name, paused_at) VALUES (:name, now())", name=queue)


def counts(row: RowMapping) -> tuple[int, int, int]:
    """(attempt, fence, lost) of a task."""
    return row["attempt"], row["fence"], row["lost"]


def begin(engine: Engine) -> Connection:
    """A connection with a short patience: a test that deadlocks fails instead of hanging."""
    connection = engine.connect()
    connection.execute(text("SET lock_timeout = '20s'"))
    connection.commit()
    return connection
