"""What notifier plugins write against: the event, the context of a try, and what a notifier is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol, runtime_checkable
from uuid import UUID

from pydantic import BaseModel

from taskyard.errors import InvalidHandler


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
    """One step in a task's life, as routes select it and notifiers send it."""

    id: str
    type: str
    time: datetime
    task_id: UUID
    attempt: int
    data: dict[str, Any]
    task: TaskInfo

    def to_cloudevent(self) -> dict[str, Any]:
        """This event in CloudEvents 1.0 JSON format (structured mode).

        ``source`` names the namespace, so that ``source`` + ``id`` is unique as the specification asks.
        """
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": f"/taskyard/{self.task.namespace}",
            "type": self.type,
            "subject": str(self.task_id),
            "time": self.time.isoformat(),
            "datacontenttype": "application/json",
            "data": {
                "task_id": str(self.task_id),
                "attempt": self.attempt,
                "task": {
                    "type": self.task.type,
                    "queue": self.task.queue,
                    "priority": self.task.priority,
                    "tags": list(self.task.tags),
                    "status": self.task.status,
                },
                **self.data,
            },
        }


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


def check_notifier(candidate: Any) -> Notifier:
    """A notifier ready for use: a class is instantiated, and its shape is checked.

    Raises:
        InvalidHandler: it lacks a name, an Options model or send.
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
    assert isinstance(made, Notifier)
    return made
