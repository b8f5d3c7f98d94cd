"""What goes out: typed answers, read from rows by attribute."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationInfo

from taskyard.events import NO_TASK
from taskyard.ids import PLAIN, PublicIds
from taskyard.lifecycle import Status
from taskyard.logline import Level
from taskyard.place import COUNT_LIMIT


def _shown(number: Any, info: ValidationInfo) -> str:
    ids: PublicIds = (info.context or {}).get(PUBLIC_IDS, PLAIN)
    return str(ids.hide(number))


#: Where an answer's context has the installation's way to show numbers.
PUBLIC_IDS = "ids"
PublicId = Annotated[str, BeforeValidator(_shown)]


def _as_object(value: Any) -> Any:
    """What a handler left, as the object that it should be: no stored row makes a list unreadable."""
    return value if value is None or isinstance(value, dict) else {"message": str(value)}


def _of_task(value: Any) -> Any:
    return None if value == NO_TASK else value


def _as_number(value: Any) -> Any:
    return value if isinstance(value, int | float) and -1e300 < value < 1e300 else None


def _is_none(value: Any) -> bool:
    return value is None


def _as_objects(value: Any) -> list[Any]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


#: Columns that hold JSON of handlers and notifiers are written with care, and read without trust.
SaidText = Annotated[str | None, BeforeValidator(lambda value: None if value is None else str(value))]
SaidNumber = Annotated[float | None, BeforeValidator(_as_number)]
SaidObject = Annotated[dict[str, Any], BeforeValidator(_as_object)]


class Out(BaseModel):
    """An answer, made from a row or an object that has the same attributes."""

    model_config = ConfigDict(from_attributes=True)


class Progress(Out):
    """How far a run is."""

    fraction: SaidNumber = Field(None, description="0 to 1.")
    message: SaidText = None


class TaskError(Out):
    """Why the last run failed. Handlers may add to it."""

    model_config = ConfigDict(from_attributes=True, extra="allow")

    code: SaidText = None
    message: SaidText = None
    where: SaidText = Field(None, exclude_if=_is_none, description="Of an unexpected error: the file and the line, such as `/srv/words.py:12, in count`.")
    traceback: SaidText = Field(None, exclude_if=_is_none, description="Of an unexpected error: how it got there, cut to a readable size.")


class TaskOut(Out):
    """A task as it stands."""

    id: UUID
    namespace: str
    type: str
    status: Status
    payload: Any
    priority: int = Field(description="0 to 9; 9 is the most urgent.")
    queue: str
    run_at: datetime | None = Field(description="The start that was asked for.")
    expires_at: datetime | None
    timeout: float = Field(description="Seconds that a run may take.")
    max_attempts: int
    tags: list[str]
    metadata: SaidObject
    unique_key: str | None
    parent_id: UUID | None = Field(description="The task whose handler submitted this one.")
    attempt: int = Field(description="Runs so far, since a person's last retry.")
    result: Any = Field(description="What the handler returned.")
    error: Annotated[TaskError | None, BeforeValidator(_as_object)]
    progress: Annotated[Progress | None, BeforeValidator(_as_object)]
    created_at: datetime
    updated_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    next_run_at: datetime | None = Field(description="When it is next looked at: a first start ahead, or a retry's back-off.")
    cancel_requested: Annotated[bool, BeforeValidator(lambda at: at is not None)] = Field(validation_alias="cancel_requested_at")
    version: int = Field(description="Grows with every change.")
    position: int | None = Field(
        None,
        description="In the answer of GET /tasks/{id}: its place among the waiting tasks of its namespace, queue and lane, counted in the first "
        f"{COUNT_LIMIT:,} of the line; 1 is the next of them. Null: it is not in line.",
    )
    estimated_start: datetime | None = Field(
        None,
        description="In the answer of GET /tasks/{id}: a coarse estimate, from how long tasks took lately on the workers that there are; "
        "a planned time, if it has one. Null: nothing can be said.",
    )


class TaskReceipt(Out):
    """What a key without the scope `tasks:read` gets of a task that it has written to: what it needs to go on, and nothing that the task holds."""

    id: UUID
    type: str
    status: Status
    queue: str
    priority: int
    timeout: float = Field(description="Seconds that a run may take.")
    max_attempts: int
    attempt: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    next_run_at: datetime | None
    cancel_requested: Annotated[bool, BeforeValidator(lambda at: at is not None)] = Field(validation_alias="cancel_requested_at")
    version: int = Field(description="Grows with every change.")


class PlaceOut(Out):
    """Where a waiting task stands, without the task."""

    position: int | None = Field(description="Its place among the waiting tasks of its namespace, queue and lane: 1 is the next. Null: it is not in line.")
    capped: bool = Field(description=f"{COUNT_LIMIT:,} tasks or more stand before it in line: `position` counts those of its namespace among the first.")
    estimated_start: datetime | None = Field(
        description="A coarse estimate, from how long tasks took lately on the workers that live; a planned time, if it has one. Null: none can be made."
    )


class EventOut(Out):
    """One step of a task's history."""

    id: PublicId
    namespace: str
    type: str
    time: datetime
    task_id: UUID
    attempt: int
    data: SaidObject


class LogOut(Out):
    """A line that a task's handler has logged."""

    id: PublicId
    time: datetime
    level: Level
    message: str
    fields: SaidObject = Field(description="What else the line says, by name.")
    attempt: int
    fence: int = Field(description="Of the run that said it.")


class DeliveryTry(Out):
    """One try of a delivery."""

    attempt: int
    time: datetime
    outcome: str
    detail: SaidText = None
    duration: SaidNumber = Field(None, description="Seconds.")


class DeliveryOut(Out):
    """One event on its way to one route's receiver."""

    id: PublicId
    namespace: str
    event_id: PublicId
    event: str = Field(description="The event's type.")
    task_id: Annotated[UUID | None, BeforeValidator(_of_task)] = Field(description="Null for system events and digests.")
    route: str
    notifier: str
    status: Literal["pending", "queued", "sending", "delivered", "dead"]
    attempt: int
    tries: Annotated[list[DeliveryTry], BeforeValidator(_as_objects)]
    next_try_at: datetime | None
    created_at: datetime
    updated_at: datetime
    delivered_at: datetime | None


class QueueOut(Out):
    """A queue. Counting stops at 10,000 for each priority, or earlier where many queues are deep; ``capped`` says that it did, and that there may be more."""

    name: str
    paused: Annotated[bool, BeforeValidator(lambda at: at is not None)] = Field(validation_alias="paused_at")
    scheduled: int
    pending: int
    queued: int
    running: int
    held: int
    capped: bool
    workers: list[str] = Field(description="Names of live workers that serve it.")


class Defaults(Out):
    """What a task of a type gets when its submitter does not say."""

    queue: str
    priority: int
    timeout: float
    max_attempts: int


class TaskTypeOut(Out):
    """A task type that can be submitted."""

    type: str
    aliases: list[str] = Field(description="Names that it had before, which are taken as well.")
    description: str
    plugin: str
    lane: Literal["sync", "async"]
    batch: int | None = Field(description="Most tasks that one call of its handler takes; null for one at a time.")
    defaults: Defaults
    payload_schema: dict[str, Any] = Field(description="JSON Schema of the payload.")
    result_schema: dict[str, Any] = Field(description="JSON Schema of the result.")


class PluginOut(Out):
    """An installed plugin."""

    name: str
    distribution: str
    version: str
    state: Literal["enabled", "disabled", "failed"]
    reason: str | None = Field(description="Why it failed.")
    where: str | None = Field(None, description="In which file and line it failed, such as `/srv/words.py:12, in count`.")
    traceback: str | None = Field(None, description="How it got there. Only for keys with the scope `admin`, and where no keys are asked for.")
    task_types: list[str]
    notifiers: list[str]


class RouteState(Out):
    """Whether a route sends. One whose receiver answered that it wants no more (410 Gone) is switched off."""

    name: str
    state: Literal["enabled", "disabled", "unknown"] = Field(description="`unknown`: no dispatcher has started with it, or the database is away.")
    reason: str | None = None
    since: datetime | None = None


class NotifierOut(Out):
    """A notifier that routes can use."""

    name: str
    plugin: str
    description: str
    routes: list[str] = Field(description="Names of the configured routes that use it.")
    route_states: list[RouteState] = Field(description="The same, each with its state.")
    options_schema: dict[str, Any] = Field(description="JSON Schema of a route's options.")


class TaskBatch(Out):
    """Tasks in the order that they were sent in."""

    items: list[TaskOut]


class TaskReceipts(Out):
    """Receipts in the order of the tasks that were sent."""

    items: list[TaskReceipt]


class WouldChange(Out):
    """What a dry run would have changed."""

    status: str = Field(description="As it is.")
    becomes: str = Field(description="As it would be. `running` for a running task that would be asked to stop.")
    count: int


WouldChangeAll = Annotated[
    list[WouldChange], Field(default_factory=list, description="There only with `dry_run`: how many would be moved, by old and new status.")
]


class ActionOut(Out):
    """What an action came to."""

    matched: int = Field(description="Tasks that the filter found.")
    changed: int = Field(description="Those of them that the action has moved.")
    would_change: WouldChangeAll
    next_cursor: str = Field("", description="There only if more may match: send the action again with it as `cursor`.")


class DeliveryActionOut(Out):
    """What an action on deliveries came to."""

    matched: int = Field(description="Deliveries that the filter found.")
    changed: int = Field(description="Those of them that are sent again: the others are on their way.")
    would_change: WouldChangeAll
    next_cursor: str = Field("", description="There only if more may match: send the action again with it as `cursor`.")


class TaskPage(Out):
    """Tasks, newest first."""

    items: list[TaskOut]
    next_cursor: str | None


class EventPage(Out):
    """Events, oldest first."""

    items: list[EventOut]
    next_cursor: str | None


class LogPage(Out):
    """Log lines, oldest first."""

    items: list[LogOut]
    next_cursor: str | None
    dropped: int = Field(description="Lines of this task that are not kept: the oldest go when there is more than 1 MiB of them.")


class DeliveryPage(Out):
    """Deliveries, newest first."""

    items: list[DeliveryOut]
    next_cursor: str | None


class Queues(Out):
    """All known queues, by name."""

    items: list[QueueOut]


class TaskTypes(Out):
    """All task types, by name."""

    items: list[TaskTypeOut]


class Plugins(Out):
    """All installed plugins, by name."""

    items: list[PluginOut]


class Notifiers(Out):
    """All notifiers, by name."""

    items: list[NotifierOut]


class Alive(Out):
    """The process runs."""

    status: Literal["alive"] = "alive"


class Ready(Out):
    """Whether each part that a request needs is usable."""

    status: Literal["ready", "not ready"]
    parts: dict[str, str] = Field(description="`ok`, or what is wrong with it.")


TASK: TypeAdapter[TaskOut] = TypeAdapter(TaskOut)
TASK_BATCH: TypeAdapter[TaskBatch] = TypeAdapter(TaskBatch)
RECEIPT: TypeAdapter[TaskReceipt] = TypeAdapter(TaskReceipt)
RECEIPT_BATCH: TypeAdapter[TaskReceipts] = TypeAdapter(TaskReceipts)
TASK_PAGE: TypeAdapter[TaskPage] = TypeAdapter(TaskPage)
PLACE: TypeAdapter[PlaceOut] = TypeAdapter(PlaceOut)
EVENT_PAGE: TypeAdapter[EventPage] = TypeAdapter(EventPage)
LOG_PAGE: TypeAdapter[LogPage] = TypeAdapter(LogPage)
DELIVERY: TypeAdapter[DeliveryOut] = TypeAdapter(DeliveryOut)
DELIVERY_PAGE: TypeAdapter[DeliveryPage] = TypeAdapter(DeliveryPage)
QUEUE: TypeAdapter[QueueOut] = TypeAdapter(QueueOut)
QUEUES: TypeAdapter[Queues] = TypeAdapter(Queues)
