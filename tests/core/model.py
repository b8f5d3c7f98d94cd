"""A task's life as docs/ tells it, in plain Python: what each verb does to a handful of tasks, with no database.

Nothing here is taken from taskyard.lifecycle. Moments are not times but words: ``None``, ``"ahead"`` and ``"past"``; a test
makes time move by saying so. A verb answers what its statement should answer, and changes the tasks it should change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

When = Literal["ahead", "past"] | None

#: For each verb, from where it leads where. Read off docs/lifecycle.md and the design by a person.
MOVES: dict[str, set[tuple[str, str]]] = {
    "promote": {("scheduled", "pending"), ("pending", "pending")},
    "dispatch": {("pending", "queued"), ("queued", "queued")},
    "withdraw": {("queued", "pending")},
    "claim": {("queued", "running"), ("pending", "running"), ("queued", "pending"), ("pending", "pending")},
    "finish": {("running", after) for after in ("succeeded", "failed", "cancelled", "scheduled", "pending")},
    "reap": {("running", after) for after in ("pending", "failed", "cancelled")},
    "expire": {(before, "expired") for before in ("scheduled", "pending", "queued", "held")},
    "cancel": {(before, "cancelled") for before in ("scheduled", "pending", "queued", "held")} | {("running", "running")},
    "hold": {(before, "held") for before in ("scheduled", "pending", "queued")},
    "release": {("held", "pending"), ("held", "scheduled")},
    "retry": {(before, "pending") for before in ("failed", "cancelled", "expired")},
    "update": {(status, status) for status in ("scheduled", "pending", "queued", "held", "running")}
    | {("scheduled", "pending"), ("pending", "scheduled"), ("queued", "scheduled")},
}
ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
KNOWN_TYPES = ("demo.work", "demo.other")
MAX_LOST = 1
#: The routes of every sequence: name → does it want this event of this task?
ROUTES: dict[str, Callable[[str, Task], bool]] = {
    "demo": lambda event, task: task.type.startswith("demo."),
    "urgent ends": lambda event, task: event in ("task.succeeded", "task.failed", "task.cancelled", "task.expired") and task.priority >= 5,
    "tagged": lambda event, task: "t" in task.tags and event in ("task.updated", "task.lost", "task.retrying", "task.released"),
}


class Refused(Exception):
    """The verb is refused: ``status`` and ``allowed`` say why."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.allowed = {verb for verb in ("cancel", "hold", "release", "retry", "update") if any(before == status for before, _ in MOVES[verb])}


class Taken(Exception):
    """Another live task has the unique_key."""

    def __init__(self, holder: UUID) -> None:
        self.holder = holder


@dataclass(frozen=True)
class Said:
    """One event: its type, the attempt it names, and the routes that want it."""

    type: str
    attempt: int
    routes: tuple[str, ...]


@dataclass(eq=False)
class Task:
    """What the model knows of a task."""

    id: UUID
    type: str = "demo.work"
    queue: str = "default"
    priority: int = 5
    tags: tuple[str, ...] = ()
    max_attempts: int = 1
    unique_key: str | None = None
    run_at: When = None
    expires: When = None
    status: str = "pending"
    next_run: When = None
    queued: Literal["fresh", "stale"] | None = None
    attempt: int = 0
    fence: int = 0
    lost: int = 0
    version: int = 1
    asked: bool = False
    worker: UUID | None = None
    error: str | None = None
    progress: float | None = None
    history: list[Said] = field(default_factory=list)

    @property
    def waits_in_line(self) -> bool:
        return self.status in ("pending", "queued") and self.next_run is None

    def say(self, event: str) -> None:
        self.history.append(Said(event, self.attempt, tuple(sorted(name for name, wants in ROUTES.items() if wants(event, self)))))


def urgent_first(tasks: Iterable[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: (-task.priority, task.id))


class Model:
    """All tasks, workers (None: silent) and paused queues of one sequence."""

    def __init__(self) -> None:
        self.tasks: dict[UUID, Task] = {}
        self.workers: dict[UUID, bool] = {}
        self.paused: set[str] = set()
        self.moved: set[tuple[str, str, str]] = set()

    def _move(self, task: Task, verb: str, status: str, event: str | None = None) -> None:
        assert (task.status, status) in MOVES[verb], f"the model itself lets {verb} lead from {task.status} to {status}"
        self.moved.add((verb, task.status, status))
        task.status = status
        task.version += 1
        if event:
            task.say(event)

    def _holder(self, key: str | None, but: UUID) -> UUID | None:
        return next((t.id for t in self.tasks.values() if key and t.unique_key == key and t.status not in ENDED and t.id != but), None)

    # --- clients ---

    def submit(self, new: Sequence[Task]) -> set[UUID]:
        """Of several with one key the first by id gets in."""
        came = set()
        for task in sorted(new, key=lambda task: task.id):
            if task.id in self.tasks or self._holder(task.unique_key, task.id):
                continue
            task.status, task.next_run = ("scheduled", "ahead") if task.run_at == "ahead" else ("pending", None)
            self.tasks[task.id] = task
            task.say("task.submitted")
            came.add(task.id)
        return came

    # --- dispatcher ---

    def promote(self) -> int:
        due = [task for task in self.tasks.values() if task.next_run == "past"]
        for task in due:
            task.next_run = None
            self._move(task, "promote", "pending")
        return len(due)

    def dispatch(self, queue: str, room: int) -> list[UUID]:
        line = [t for t in self.tasks.values() if t.queue == queue and t.waits_in_line and t.expires != "past"]
        ready = urgent_first(t for t in line if t.status == "pending" or t.queued == "stale")[:room]
        if queue in self.paused:
            return []
        for task in ready:
            task.queued = "fresh"
            self._move(task, "dispatch", "queued")
        return [task.id for task in ready]

    def withdraw(self, ids: Iterable[UUID]) -> int:
        queued = [self.tasks[id_] for id_ in ids if self.tasks[id_].status == "queued"]
        for task in queued:
            task.queued = None
            self._move(task, "withdraw", "pending")
        return len(queued)

    def expire(self) -> set[UUID]:
        late = [t for t in self.tasks.values() if t.expires == "past" and t.status not in ENDED and t.status != "running"]
        for task in late:
            task.next_run = None
            self._move(task, "expire", "expired", "task.expired")
        return {task.id for task in late}

    def reap(self) -> set[UUID]:
        silent = {id_ for id_, beats in self.workers.items() if not beats}
        orphaned = [task for task in self.tasks.values() if task.worker in silent]
        self.workers = {id_: beats for id_, beats in self.workers.items() if beats}
        for task in orphaned:
            self._lose(task, "reap", "cancelled" if task.asked else "pending")
        return {task.id for task in orphaned}

    def _lose(self, task: Task, verb: str, otherwise: str) -> None:
        """A lost run is not an attempt; too many of them are the end."""
        task.lost += 1
        task.worker = task.queued = None
        becomes = "failed" if task.lost > MAX_LOST else otherwise
        if becomes == "failed":
            task.error = "worker-lost"
        if becomes == "pending":
            task.attempt -= 1
        self._move(task, verb, becomes, "task.lost" if becomes == "pending" else f"task.{becomes}")

    # --- worker ---

    def claim(self, worker: UUID, queue: str, ids: Sequence[UUID]) -> dict[UUID, str]:
        """A hint is worth one run of the line's most urgent; its own task steps back if there was none for it."""
        if worker not in self.workers:
            return {}
        hinted = [self.tasks[id_] for id_ in dict.fromkeys(ids) if id_ in self.tasks]
        # One that is still pending has had a direct hint.
        hinted = [task for task in hinted if task.waits_in_line and task.queue == queue]
        least = min((task.priority for task in hinted), default=9)
        line = [t for t in self.tasks.values() if t.queue == queue and t.waits_in_line]
        able = {t for t in line if t.type in KNOWN_TYPES and t.expires != "past" and (t in hinted or t.priority > least)}
        run = [] if queue in self.paused else urgent_first(able)[: len(ids)]
        for task in run:
            self._start(task, worker)
        back = [task for task in hinted if task not in run and (task.status == "queued" or task.type not in KNOWN_TYPES)]
        for task in back:
            strange = task.type not in KNOWN_TYPES
            task.queued, task.next_run = None, "ahead" if strange else None
            self._move(task, "claim", "pending", "task.parked" if strange else None)
        return {task.id: task.status for task in (*run, *back)}

    def _start(self, task: Task, worker: UUID) -> None:
        task.fence += 1
        task.attempt += 1
        task.worker, task.progress = worker, None
        task.queued = task.queued or "fresh"
        self._move(task, "claim", "running", "task.started")

    def finish(self, id_: UUID, fence: int, outcome: str, delay: float = 0.0) -> str | None:
        """The status that a report leads to; None if it is stale."""
        task = self.tasks[id_]
        if task.status != "running" or task.fence != fence:
            return None
        again = "cancelled" if task.asked else "pending"
        if outcome == "lost":
            self._lose(task, "finish", again)
            return task.status
        if outcome == "retry" and again == "pending":
            again = "failed" if task.attempt >= task.max_attempts else "scheduled" if delay else "pending"
        becomes = outcome if outcome in ("succeeded", "failed", "cancelled") else again
        task.worker = task.queued = None
        task.next_run = "ahead" if becomes == "scheduled" else None
        task.error = None if becomes == "succeeded" else "wrong" if outcome in ("failed", "retry") else task.error
        if outcome == "returned" and becomes == "pending":
            task.attempt -= 1
        waits = {"retry": "task.retrying", "returned": "task.released"}
        self._move(task, "finish", becomes, f"task.{becomes}" if becomes in ENDED else waits[outcome])
        return becomes

    def tell(self, id_: UUID, fence: int, fraction: float) -> bool:
        """Progress, by the fence."""
        task = self.tasks[id_]
        if task.status != "running" or task.fence != fence:
            return False
        task.progress = fraction
        task.version += 1
        task.say("task.progress")
        return True

    def strays(self, worker: UUID, known: Mapping[UUID, int]) -> dict[UUID, int]:
        return {t.id: t.fence for t in self.tasks.values() if t.worker == worker and known.get(t.id) != t.fence}

    def unregister(self, worker: UUID) -> None:
        """A worker whose tasks still run stays, for the reaper to find."""
        if not self.strays(worker, {}):
            self.workers.pop(worker, None)

    # --- people ---

    def cancel(self, id_: UUID) -> None:
        task = self._let("cancel", id_)
        if task.status == "running" and task.asked:
            return
        task.asked, task.next_run = True, None
        running = task.status == "running"
        self._move(task, "cancel", "running" if running else "cancelled", "task.cancel_requested" if running else "task.cancelled")

    def hold(self, id_: UUID) -> None:
        task = self._let("hold", id_)
        task.next_run = task.queued = None
        self._move(task, "hold", "held", "task.held")

    def release(self, id_: UUID) -> None:
        task = self._let("release", id_)
        task.next_run = "ahead" if task.run_at == "ahead" else None
        self._move(task, "release", "scheduled" if task.next_run else "pending", "task.released")

    def retry(self, id_: UUID) -> None:
        task = self._let("retry", id_)
        if holder := self._holder(task.unique_key, id_):
            raise Taken(holder)
        task.attempt = task.lost = 0
        task.error = task.progress = task.next_run = task.queued = None
        task.asked = False
        task.expires = "ahead" if task.expires == "ahead" else None
        self._move(task, "retry", "pending", "task.retrying")

    def update(self, id_: UUID, changes: dict[str, Any]) -> None:
        """``run_at`` and ``expires_at`` are a When here."""
        task = self._let("update", id_)
        if task.status == "running" and changes.keys() & {"priority", "run_at", "expires_at"}:
            raise Refused(task.status)
        status = task.status
        task.priority = changes.get("priority", task.priority)
        task.tags = tuple(changes.get("tags", task.tags))
        task.expires = changes.get("expires_at", task.expires)
        if "run_at" in changes:
            task.run_at = changes["run_at"]
            if status != "held":
                task.next_run = "ahead" if task.run_at == "ahead" else None
                status = "scheduled" if task.next_run else "pending" if status == "scheduled" else status
            if task.run_at == "ahead":
                task.queued = None
        self._move(task, "update", status, "task.updated")

    def _let(self, verb: str, id_: UUID) -> Task:
        task = self.tasks[id_]
        if not any(before == task.status for before, _ in MOVES[verb]):
            raise Refused(task.status)
        return task
