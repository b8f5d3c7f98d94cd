"""Live: events as they happen, of a namespace or of one task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from taskyard import feed, queries
from taskyard.errors import InvalidInput
from taskyard_api import access
from taskyard_api.live import LAST, Asked
from taskyard_api.parameters import StreamQuery, TaskId, TaskStreamQuery, task_uuid
from taskyard_api.routes.answers import problems
from taskyard_api.routes.route import Route
from taskyard_api.service import Service, Serving, home_of, reach_of
from taskyard_api.sse import MEDIA_TYPE, EventStream

router = APIRouter(tags=["live"], route_class=Route)

LastEventId = Annotated[str | None, Header(include_in_schema=False)]
_LAST_EVENT_ID: dict[str, Any] = {
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "The id of the last event that was received: the stream goes on after it.",
            "schema": {"type": "string", "pattern": "^[0-9]{0,19}$"},
        }
    ]
}
#: OpenAPI 3.1 has no word for "a sequence of these", and generated clients parse what has a schema of an object.
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, each with the members of `StreamMessage`. `data` is a `CloudEvent` as JSON.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}
_OVER: dict[int | str, dict[str, Any]] = {204: {"description": "The task has ended, and all its events were received: do not come back."}}


@router.get("/events", status_code=200, response_class=EventStream, responses=_STREAM | problems(429), openapi_extra=_LAST_EVENT_ID)
async def stream_events(request: Request, service: Serving, query: Annotated[StreamQuery, Query()], last_event_id: LastEventId = None) -> Response:
    """Follow what happens to all tasks that the filters let through, live. Nothing is left out and nothing comes twice, also after a
    reconnect with `Last-Event-ID`."""
    namespace = reach_of(request, query.namespace)
    filters, after = service.widened(query.filters()), await _number(service, last_event_id)
    service.feed.admit()
    wanted = partial(feed.is_wanted, namespace=namespace, filters=filters)
    return EventStream(service.feed.stream(Asked(wanted, _check(request), after, namespace, named=query.named)))


@router.get(
    "/tasks/{task_id}/stream", status_code=200, response_class=EventStream, responses=_STREAM | _OVER | problems(404, 429), openapi_extra=_LAST_EVENT_ID
)
async def stream_task(
    request: Request, service: Serving, task_id: TaskId, query: Annotated[TaskStreamQuery, Query()], last_event_id: LastEventId = None
) -> Response:
    """Follow one task: its history and its log lines so far, then live, progress too, until it has ended."""
    id_, after = task_uuid(task_id), await _number(service, last_event_id) or 0
    namespace = await home_of(request, queries.namespace_of_task, id_)
    task = await service.read(queries.task, namespace, id_)
    if task.finished_at is not None and after and not await service.read(feed.events, after, LAST, 1, id_):
        # An EventSource comes back whenever a stream ends, unless it is told not to.
        return Response(status_code=204)
    service.feed.admit()
    welcome = _check(request)

    async def check() -> None:
        await welcome()
        # Retention may have deleted it.
        await service.read(queries.task, namespace, id_)

    return EventStream(service.feed.stream(Asked(lambda row: row["task_id"] == id_, check, after, task_id=id_, named=query.named)))


async def _number(service: Service, last_event_id: str | None) -> int | None:
    """The event that a Last-Event-ID names. Raises InvalidInput: it is no id of an event, or of one that is yet to come."""
    if not last_event_id:
        return None
    if last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 20 and (shown := int(last_event_id)) < 2**63:
        # 0 is the beginning, and no event's.
        number = (await service.public_ids()).reveal(shown) if shown else 0
        if number <= await service.read(feed.drawn):
            return number
    raise InvalidInput("The header Last-Event-ID is not as expected.", [("/Last-Event-ID", "expected the id of an event that was received")])


def _check(request: Request) -> Callable[[], Awaitable[object]]:
    """Whether the caller may still read: a key can end while its stream is open."""

    async def nothing() -> None: ...

    check: Callable[[], Awaitable[object]] = request.scope.get(access.CHECK, nothing)
    return check
