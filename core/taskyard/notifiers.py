"""What notifier plugins write against: the event, the context of a try, and what a notifier is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Protocol, runtime_checkable
from uuid import UUID

from pydantic import BaseModel

from taskyard.errors import InvalidHandler
from taskyard.events import DIGEST, NO_TASK


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What an event tells of its task, as it stood when the event happened or later."""

    namespace: str
    type: str
    queue: str
    priority: int
    tags: tuple[str, ...] = ()
    status: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One step in a task's life, as routes select it and notifiers send it; or one of no task: a system event, or a digest of many.

    Such a one has the Nil UUID as ``task_id``, a ``task`` without a type, and all that there is to say in ``data``.
    """

    id: str
    type: str
    time: datetime
    task_id: UUID
    attempt: int
    data: dict[str, Any]
    task: TaskInfo
    #: What a success adds to ``data`` in a CloudEvent: ``result``, or ``result_url`` where that is large or not for the receiver. Not in ``data``
    #: itself, which templates and logs show.
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def of_task(self) -> bool:
        """Is it of a task?"""
        return self.task_id != NO_TASK

    @property
    def subject(self) -> str:
        """What it is about: the task's id, or such as ``queue/io``."""
        if self.of_task:
            return str(self.task_id)
        kind = "route" if self.type == DIGEST else self.type.partition(".")[0]
        return f"{kind}/{self.data.get(kind, '')}"

    def to_cloudevent(self) -> dict[str, Any]:
        """This event in CloudEvents 1.0 JSON format (structured mode).

        ``source`` names the namespace, so that ``source`` + ``id`` is unique as the specification asks.
        """
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": f"/taskyard/{self.task.namespace}",
            "type": self.type,
            "subject": self.subject,
            "time": self.time.isoformat(),
            "datacontenttype": "application/json",
            "data": {**self._about_task(), **self.data, **self.outcome},
        }

    def _about_task(self) -> dict[str, Any]:
        if not self.of_task:
            return {}
        task = self.task
        about = {"type": task.type, "queue": task.queue, "priority": task.priority, "tags": list(task.tags), "status": task.status}
        return {"task_id": str(self.task_id), "attempt": self.attempt, "task": about}


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What a notifier knows about the try it makes.

    ``delivery_id`` is the same in every try of one delivery: receivers drop repeats by it. ``timeout`` is in seconds; a
    try that takes longer is ended and counts as failed.
    """

    delivery_id: str
    route: str
    attempt: int = 1
    timeout: float = 30.0
    config: Any = None
    log: Any = None


@runtime_checkable
class Notifier(Protocol):
    """A way to tell the outside world of an event.

    ``send`` may be ``def`` or ``async def``. It returns when the receiver has taken the event; what it returns (a short
    string, or None) is kept with the try. Raising :class:`taskyard.RetryLater` or anything unexpected means another try,
    :class:`taskyard.TaskFailed` means that more tries would not help.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]]

    def send(self, event: Event, options: Any, ctx: DeliveryContext) -> Any: ...


def is_for_operators_only(notifier: Notifier) -> bool:
    """May only an operator's route use it, and no client's ``notify``? A notifier says so by its class attribute ``operators_only``.

    It is for notifiers whose options reach further than a client may: addresses inside the operator's network, files, programs.
    """
    return bool(getattr(notifier, "operators_only", False))


def check_notifier(candidate: Any) -> Notifier:
    """A notifier ready for use: a class is instantiated, and its shape is checked.

    Raises:
        InvalidHandler: it lacks a name, an Options model or send; or ``operators_only`` is neither True nor False.
    """
    where = f"notifier {getattr(candidate, '__qualname__', type(candidate).__qualname__)}"
    made = candidate() if isinstance(candidate, type) else candidate
    if not isinstance(getattr(made, "name", None), str) or not made.name:
        raise InvalidHandler(f"{where}: expected a class attribute name = '...'")
    options = getattr(made, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise InvalidHandler(f"{where}: expected Options, a Pydantic model")
    if not callable(getattr(made, "send", None)):
        raise InvalidHandler(f"{where}: expected send(event, options, ctx)")
    if not isinstance(only := getattr(made, "operators_only", False), bool):
        raise InvalidHandler(f"{where}: operators_only is {only!r}; expected True or False")
    assert isinstance(made, Notifier)
    return made
