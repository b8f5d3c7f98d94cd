"""Tasks as they are submitted, typed by their handlers; and the filters and changes that calls take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

from taskyard.errors import InvalidInput
from taskyard.handlers import Handler
from taskyard.payloads import payload_json
from taskyard.task_options import Options, Time, plain

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Words = str | Iterable[str]


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
    id: Words
    unique_key: Words
    #: Names at the top level of the tasks' metadata, and the value that each has. Lists and actions take it, and :meth:`Client.watch` does not.
    metadata: Mapping[str, str | bool | float | None]


class Changes(TypedDict, total=False):
    """What to change of a task: the fields of ``PATCH /tasks/{id}``. None takes ``run_at`` or ``expires_at`` away."""

    status: str
    priority: int
    run_at: Time | None
    expires_at: Time | None
    tags: Iterable[str]
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
        self.handler: Handler[Any, R_co] | None = handler_of(type)
        self.type = type.type if isinstance(type, Handler) else type
        self.payload = payload
        # Now: a generator may mean something else later, when a batch of these is read.
        self.options = plain(options)

    def body(self) -> dict[str, Any]:
        """It, as it is sent."""
        return {"type": self.type, "payload": payload_json(self.payload), **self.options}


def handler_of(type: Handler[Any, Any] | str | None) -> Handler[Any, Any] | None:
    """The handler, where ``type`` is one; None for a name. Raises InvalidInput: it is neither, such as a function without ``@handler``."""
    if type is None or isinstance(type, str):
        return None
    if not isinstance(type, Handler):
        raise InvalidInput(f"{type!r:.200} is no task type: expected a handler, as @handler makes it, or the name of a type.")
    return type


def new_tasks(given: Iterable[New[R] | Mapping[str, Any]]) -> tuple[New[R], ...]:
    """The tasks of a batch, read to the end of what brings them. Raises InvalidInput: one is neither :class:`New` nor a dict."""
    return tuple(new_task(one, f"/tasks/{index}") for index, one in enumerate(given))


def new_task(given: New[R] | Mapping[str, Any], pointer: str = "") -> New[R]:
    """A task, also from a dict with the fields of ``POST /tasks``. Raises InvalidInput, which names the ``pointer``: it is neither."""
    if isinstance(given, New):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{given!r:.200} is no task: expected New(type, payload, ...), or a dict.", [(pointer, "expected a task")])
    fields = dict(given)
    made: New[R] = New(fields.pop("type", None), fields.pop("payload", None))
    # Names that are no options are sent as well: the service knows them, or names the nearest right one.
    made.options = plain(fields)
    return made


def query(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as the query of a list has them."""
    given = plain(filters)
    wanted = given.pop("metadata", {})
    return given | {f"metadata.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in wanted.items()}
