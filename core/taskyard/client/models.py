"""What the service answers, typed. What a newer service adds is kept, and can be read by its name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from taskyard.statuses import TERMINAL

T = TypeVar("T")


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Progress(Answer):
    """How far a run is: ``fraction`` from 0 to 1, ``message`` for people."""

    fraction: float | None = None
    message: str | None = None


class TaskError(Answer):
    """Why the last run failed. Handlers may add to it."""

    code: str | None = None
    message: str | None = None


class Task(Answer):
    """A task as it stood when the service answered. ``payload`` and ``result`` are JSON; ``timeout`` is in seconds.

    A key without the scope ``tasks:read`` gets neither payload, result, error, progress, tags nor metadata of a task that it writes to.
    """

    id: UUID
    #: None of a service of an earlier version, and in what a key without ``tasks:read`` gets of a write.
    namespace: str | None = None
    type: str
    #: One of :data:`taskyard.statuses.Status`, or one that only a newer service knows.
    status: str
    payload: Any = None
    priority: int
    queue: str
    run_at: datetime | None = None
    expires_at: datetime | None = None
    timeout: float
    max_attempts: int
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    unique_key: str | None = None
    attempt: int = 0
    result: Any = None
    error: TaskError | None = None
    progress: Progress | None = None
    created_at: datetime
    updated_at: datetime
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    next_run_at: datetime | None = None
    cancel_requested: bool = False
    parent_id: UUID | None = None
    #: Grows with every change. Give it back as ``if_version``.
    version: int
    #: Where it waits in line, and an estimate of when it starts: in the answer for one task, None in lists.
    position: int | None = None
    estimated_start: datetime | None = None

    @property
    def ended(self) -> bool:
        """Has it ended? Then ``finished_at`` is set."""
        return self.finished_at is not None


class EventTask(Answer):
    """What an event that came live says of its task; ``status`` is that of when it was sent."""

    type: str
    queue: str
    priority: int
    tags: tuple[str, ...] = ()
    status: str


class Event(Answer):
    """One step of a task's life. ``task`` is there in live streams, not in a history.

    ``id`` names the place in the stream of events: :meth:`Client.follow` and :meth:`Client.events` go on after it.
    """

    id: str
    namespace: str | None = None
    type: str
    time: datetime
    task_id: UUID
    attempt: int
    data: Mapping[str, Any]
    task: EventTask | None = None

    @property
    def ends(self) -> bool:
        """Is it the end of the task? A person may retry the task after it."""
        return self.type.removeprefix("task.") in TERMINAL


class LogLine(Answer):
    """A line that a task's handler has logged. ``level`` is debug, info, warning, error or critical; ``fence`` is its run's."""

    id: str
    time: datetime
    level: str
    message: str
    fields: Mapping[str, Any] = Field(default_factory=dict)
    attempt: int
    fence: int


class Place(Answer):
    """Where a waiting task stands. ``estimated_start`` is an estimate, and None where nothing can be said."""

    position: int | None
    capped: bool
    estimated_start: datetime | None


class Checked(Answer):
    """A submission that was only checked: what it would be, with its type's defaults filled in.

    ``warning`` says that no live worker serves its queue; None: the service has nothing to warn of.
    """

    type: str
    payload: Any
    priority: int
    queue: str
    timeout: float
    max_attempts: int
    warning: str | None = None


class WouldChange(Answer):
    """How many of one status a dry run would have moved, and to which. ``running`` becomes ``running`` where a task would be asked to stop."""

    status: str
    becomes: str
    count: int


class Changed(Answer):
    """What an action came to: how many tasks the filter found, and how many of them were moved; of a dry run what would have been."""

    matched: int
    changed: int
    would_change: tuple[WouldChange, ...] = ()


class ActionStep(Changed):
    """What one request of an action came to. There may be more, where the cursor says."""

    next_cursor: str | None = None


class Try(Answer):
    """One try of a delivery. ``duration`` is in seconds."""

    attempt: int
    time: datetime
    outcome: str
    detail: str | None = None
    duration: float | None = None


class Delivery(Answer):
    """One event on its way to one route's receiver."""

    id: str
    event_id: str
    event: str
    task_id: UUID | None = None
    route: str
    notifier: str
    status: str
    attempt: int
    tries: tuple[Try, ...] = ()
    next_try_at: datetime | None = None
    created_at: datetime
    updated_at: datetime
    delivered_at: datetime | None = None


class Queue(Answer):
    """How much waits in a queue; ``capped`` says that there may be more."""

    name: str
    paused: bool
    scheduled: int
    pending: int
    queued: int
    running: int
    held: int
    capped: bool
    workers: tuple[str, ...] = ()


class Defaults(Answer):
    """What a task of a type gets when its submitter does not say."""

    queue: str
    priority: int
    timeout: float
    max_attempts: int


class TaskType(Answer):
    """What can be submitted, with the JSON Schemas of payload and result."""

    type: str
    description: str
    plugin: str
    lane: str
    defaults: Defaults
    payload_schema: Mapping[str, Any]
    result_schema: Mapping[str, Any]


class Page(Answer, Generic[T]):
    """One page of a list. ``next_cursor`` is None on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Plugin(Answer):
    """An installed plugin; ``reason`` says why it failed to load."""

    name: str
    distribution: str
    version: str
    state: str
    reason: str | None = None
    task_types: tuple[str, ...] = ()
    notifiers: tuple[str, ...] = ()


class Notifier(Answer):
    """A notifier that routes can use, with the JSON Schema of its options."""

    name: str
    plugin: str
    description: str
    routes: tuple[str, ...] = ()
    options_schema: Mapping[str, Any]
