"""Tasks: list, look, change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.convertors import register_url_convertor

from taskyard import lifecycle, queries
from taskyard.errors import UniqueConflict
from taskyard.place import is_in_line, placed_task
from taskyard_api import patching
from taskyard_api.body import json_object
from taskyard_api.conditions import IF_MATCH, IF_NONE_MATCH, IfMatch, IfNoneMatch, Verb, etag, is_known, only_if
from taskyard_api.models import EVENT_PAGE, LOG_PAGE, PLACE, TASK, TASK_PAGE, EventPage, LogPage, PlaceOut, TaskOut, TaskPage
from taskyard_api.parameters import LogQuery, PageQuery, TaskConvertor, TaskId, TaskQuery, metadata_filter, task_uuid
from taskyard_api.prefer import PREFER, Prefer, applied, wait_of
from taskyard_api.routes.answers import BODY, answer, body, headers, problems, task_answer
from taskyard_api.routes.route import Route
from taskyard_api.service import Service, Serving, home_of, namespace_of, reach_of

register_url_convertor("task", TaskConvertor())


async def _of_task(request: Request, task_id: TaskId) -> str:
    return await home_of(request, queries.namespace_of_task, task_uuid(task_id))


async def _of_task_to_write(request: Request, task_id: TaskId) -> str:
    return await home_of(request, queries.namespace_of_task, task_uuid(task_id), write=True)


TaskNamespace = Annotated[str, Depends(_of_task)]
WritableNamespace = Annotated[str, Depends(_of_task_to_write)]
router = APIRouter(tags=["tasks"], route_class=Route)
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has this version already: If-None-Match.", "headers": headers("ETag")}}
#: What may be large, and is left unread where nobody asks for it.
_HEAVY = frozenset({"payload", "result", "error", "progress"})
TAGGED: dict[int | str, dict[str, Any]] = {200: {"headers": headers("ETag")}}
WAITED: dict[int | str, dict[str, Any]] = {200: {"headers": headers("ETag", maybe=["Preference-Applied"])}}
ON_CONDITION: dict[str, Any] = {"parameters": [IF_MATCH]}


@router.get("/tasks", response_model=TaskPage, responses=problems())
async def list_tasks(request: Request, service: Serving, query: Annotated[TaskQuery, Query()]) -> Response:
    """List tasks, newest first.

    `metadata.NAME=VALUE`, for up to 10 names, finds those whose metadata has this value by this name, at its top level: text, a number, `true`, `false`
    or `null`. No index helps with metadata: it is looked for in all that the other filters leave, newest first.
    """
    reach, fields = reach_of(request, query.namespace), query.chosen()
    filters = replace(service.widened(query.filters()), metadata=metadata_filter(request.query_params.multi_items()))
    without = () if fields is None else _HEAVY - fields
    page = await service.listed(namespace_of(request), queries.list_tasks, reach, filters, query.limit, query.cursor, without)
    if fields is None:
        return answer(TASK_PAGE, page)
    made = TASK_PAGE.validate_python(page, from_attributes=True)
    shown: Any = {"items": {"__all__": fields}, "next_cursor": True}
    return Response(TASK_PAGE.dump_json(made, include=shown), media_type="application/json")


@router.get(
    "/tasks/{task_id:task}", response_model=TaskOut, responses=problems(404) | UNCHANGED | WAITED, openapi_extra={"parameters": [IF_NONE_MATCH, PREFER]}
)
async def get_task(service: Serving, namespace: TaskNamespace, task_id: TaskId, if_none_match: IfNoneMatch = None, prefer: Prefer = None) -> Response:
    """Look at one task, at once or, with `Prefer: wait=N`, when it has ended or N seconds have passed. One that waits shows its place in line."""
    id_, wait = task_uuid(task_id), wait_of(prefer)
    ended = None if wait is None else await service.waits.until_ended(namespace, id_, wait)
    if ended is not None and ended["finished_at"] is not None:
        row = dict(ended)
    else:
        row = await service.read(placed_task, namespace, id_, service.settings.dispatch.worker_silence)
    headers = etag(row["version"]) | ({} if wait is None else applied(wait))
    known = is_known(row["version"], if_none_match) and not is_in_line(row)
    return Response(None, 304, headers) if known else answer(TASK, row, 200, headers)


@router.patch(
    "/tasks/{task_id:task}",
    response_model=TaskOut,
    responses=problems(*BODY, 404, 409, 412, UniqueConflict) | TAGGED,
    openapi_extra=body("TaskPatch") | ON_CONDITION,
)
async def change_task(request: Request, service: Serving, namespace: WritableNamespace, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Change a task. A `status` stands for a verb: `cancelled` (cancel), `held` (hold), `pending` (release, or retry of an ended task)."""
    task_uuid(task_id)
    patch = patching.read_patch(await json_object(request))
    return await _move(request, service, namespace, "task.update", partial(patching.apply, patch=patch), task_id, if_match)


@router.get("/tasks/{task_id}/events", response_model=EventPage, responses=problems(404))
async def list_task_events(service: Serving, namespace: TaskNamespace, task_id: TaskId, query: Annotated[PageQuery, Query()]) -> Response:
    """List a task's history, oldest first."""
    ids = await service.public_ids()
    page = await service.listed(namespace, queries.task_events, namespace, task_uuid(task_id), query.limit, query.cursor, ids)
    return answer(EVENT_PAGE, page, ids=ids)


@router.get("/tasks/{task_id}/place", response_model=PlaceOut, responses=problems(404))
async def get_place(service: Serving, namespace: TaskNamespace, task_id: TaskId) -> Response:
    """Look where a waiting task stands in its line, and when it may start: as the task itself shows it, for whoever asks again and again."""
    found = await service.read(placed_task, namespace, task_uuid(task_id), service.settings.dispatch.worker_silence)
    return answer(PLACE, found)


@router.get("/tasks/{task_id}/logs", response_model=LogPage, responses=problems(404))
async def list_task_logs(service: Serving, namespace: TaskNamespace, task_id: TaskId, query: Annotated[LogQuery, Query()]) -> Response:
    """List what a task's handler has logged, oldest first. Up to 1 MiB of a task's lines is kept."""
    ids = await service.public_ids()
    page = await service.listed(namespace, queries.task_log, namespace, task_uuid(task_id), query.level, query.limit, query.cursor, ids)
    return answer(LOG_PAGE, page, ids=ids)


async def _move(request: Request, service: Service, namespace: str, name: str, verb: Verb, task_id: str, if_match: list[str] | None) -> Response:
    row = await service.operate(request, name, task_id, only_if(if_match, verb), namespace, task_uuid(task_id))
    service.moved(row)
    return task_answer(request, row, 200, etag(row["version"]))


@router.post("/tasks/{task_id}/cancel", response_model=TaskOut, responses=problems(404, 409, 412) | TAGGED, openapi_extra=ON_CONDITION)
async def cancel_task(request: Request, service: Serving, namespace: WritableNamespace, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Cancel a task. One that runs is asked to stop first: it has `cancel_requested` until it has ended."""
    return await _move(request, service, namespace, "task.cancel", lifecycle.cancel, task_id, if_match)


@router.post("/tasks/{task_id}/retry", response_model=TaskOut, responses=problems(404, 409, 412, UniqueConflict) | TAGGED, openapi_extra=ON_CONDITION)
async def retry_task(request: Request, service: Serving, namespace: WritableNamespace, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Run a task again that failed, expired or was cancelled."""
    return await _move(request, service, namespace, "task.retry", lifecycle.retry, task_id, if_match)


@router.post("/tasks/{task_id}/hold", response_model=TaskOut, responses=problems(404, 409, 412) | TAGGED, openapi_extra=ON_CONDITION)
async def hold_task(request: Request, service: Serving, namespace: WritableNamespace, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Take a waiting task out of line."""
    return await _move(request, service, namespace, "task.hold", lifecycle.hold, task_id, if_match)


@router.post("/tasks/{task_id}/release", response_model=TaskOut, responses=problems(404, 409, 412) | TAGGED, openapi_extra=ON_CONDITION)
async def release_task(request: Request, service: Serving, namespace: WritableNamespace, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Put a held task back in line, or back on its schedule."""
    return await _move(request, service, namespace, "task.release", lifecycle.release, task_id, if_match)
