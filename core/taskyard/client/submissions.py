"""Tasks as they are submitted, typed by their handlers; and the filters and changes that calls take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

from pydantic import BaseModel

from taskyard.handlers import Handler

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: A time; one without a zone is local. As text, it is RFC 3339.
Time = datetime | str
Words = str | Sequence[str]


class _Notifier(TypedDict):
    notifier: str


class Subscription(_Notifier, total=False):
    """Whom to tell of a task: a notifier that the operator allows, its options, and which events (the four ends, where nothing is said)."""

    options: Mapping[str, Any]
    events: Sequence[str]


class Options(TypedDict, total=False):
    """How a task is to be run: the fields of ``POST /tasks`` beside type and payload. What is left out is the type's to say."""

    priority: int
    queue: str
    run_at: Time
    delay: float | timedelta
    expires_at: Time
    timeout: float | timedelta
    max_attempts: int
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    unique_key: str
    notify: Sequence[Subscription]


class Filters(TypedDict, total=False):
    """Which tasks: the filters of ``GET /tasks``. Values of one add up; different ones must all hold.

    ``namespace`` is for keys that read across namespaces: one of them, or ``*`` for all. Actions take none.
    """

    namespace: str
    status: Words
    type: Words
    queue: Words
    tag: Words
    priority: int
    created_after: Time
    created_before: Time
    q: str
    parent_id: str


class Changes(TypedDict, total=False):
    """What to change of a task: the fields of ``PATCH /tasks/{id}``. None takes ``run_at`` or ``expires_at`` away."""

    status: str
    priority: int
    run_at: Time | None
    expires_at: Time | None
    tags: Sequence[str]
    metadata: Mapping[str, Any]


class DeliveryFilters(TypedDict, total=False):
    """Which deliveries: the filters of ``GET /deliveries``. ``namespace`` as for tasks."""

    namespace: str
    status: Words
    route: Words
    notifier: Words
    event: Words
    task_id: str
    created_after: Time
    created_before: Time


class New(Generic[R_co]):
    """A task that is yet to be submitted; ``R_co`` is the type of its result.

    ``type`` is a handler, and ``payload`` what that takes; or the name of a task type, and JSON. The payload is checked by the service.
    """

    @overload
    def __init__(self: New[R], type: Handler[P, R], payload: P, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self: New[Any], type: str, payload: Any = ..., **options: Unpack[Options]) -> None: ...
    def __init__(self, type: Handler[Any, Any] | str, payload: Any = None, **options: Unpack[Options]) -> None:
        self.handler: Handler[Any, R_co] | None = type if isinstance(type, Handler) else None
        self.type = type.type if isinstance(type, Handler) else type
        self.payload = payload
        self.options = options

    def body(self) -> dict[str, Any]:
        """It, as it is sent."""
        return {"type": self.type, "payload": self._json(), **plain(self.options)}

    def _json(self) -> Any:
        if self.handler is not None:
            # What is not of the handler's type goes as it is: the service names each place that is wrong.
            return self.handler.payload.dump_python(self.payload, mode="json", by_alias=True, warnings=False)
        return self.payload.model_dump(mode="json", by_alias=True) if isinstance(self.payload, BaseModel) else self.payload


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options, filters or changes as JSON and queries have them: times in RFC 3339, durations in seconds."""
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value
