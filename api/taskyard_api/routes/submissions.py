"""Submitting tasks: one, or many in one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from sqlalchemy import RowMapping

from taskyard import idempotency, known_types, lifecycle
from taskyard.errors import IdempotencyMismatch, InvalidInput, PluginFailed, Unavailable, UniqueConflict, UnknownTaskType
from taskyard.idempotency import IdempotencyKey
from taskyard.records import NewTask
from taskyard.submission import prepare, prepare_all
from taskyard_api.body import batch_of, json_object
from taskyard_api.conditions import etag
from taskyard_api.edge import BASE
from taskyard_api.errors import PayloadTooLarge
from taskyard_api.fresh import new_task, valid_task
from taskyard_api.group_commit import Submitted
from taskyard_api.models import TaskBatch, TaskOut
from taskyard_api.prefer import PREFER, applied
from taskyard_api.routes.answers import BODY, body, headers, problems, task_answer, tasks_answer
from taskyard_api.routes.route import Route
from taskyard_api.service import Service, namespace_of, service_of
from taskyard_api.submit_options import IDEMPOTENCY_KEY, SubmitOptions, check_options, submit_options
from taskyard_api.watch import TASK_ID

router = APIRouter(tags=["tasks"], route_class=Route)
#: Seconds for which tasks of a batch are validated before other requests get their turn.
TURN = 0.01
_REPLAYED = {"Idempotency-Replayed": "true"}
#: Sent where a quota applies.
_QUOTA = ("RateLimit", "RateLimit-Policy")
#: Sent if no live worker serves a task's queue.
WARNING = "Taskyard-Warning"
_AGAIN = "Submitted before with this Idempotency-Key."
_RIGHT = "It is right, and shown with its type's defaults."


def _shown(description: str, schema: str, maybe: Iterable[str] = ()) -> dict[str, Any]:
    """What a submission answers that makes nothing new."""
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        "headers": headers(maybe=maybe),
    }


_PROBLEMS = problems(*BODY, 404, 429, PayloadTooLarge, UniqueConflict, UnknownTaskType, IdempotencyMismatch, PluginFailed)
_PROBLEMS[429]["headers"] |= headers(maybe=_QUOTA)
_ONE = _PROBLEMS | {
    200: _shown(_AGAIN, "TaskAnswer", ["ETag", "Location", "Preference-Applied", "Idempotency-Replayed", WARNING, *_QUOTA]),
    201: {"headers": headers("ETag", "Location", maybe=["Preference-Applied", WARNING, *_QUOTA])},
}
_MANY = _PROBLEMS | {200: _shown(_AGAIN, "TaskBatch", ["Idempotency-Replayed", WARNING, *_QUOTA]), 201: {"headers": headers(maybe=[WARNING, *_QUOTA])}}
_CHECKED = problems(*BODY, PayloadTooLarge, UniqueConflict, UnknownTaskType, PluginFailed)
_CHECKED_ONE = _CHECKED | {200: _shown(_RIGHT, "TaskPreview", [WARNING])}
_CHECKED_MANY = _CHECKED | {200: _shown(_RIGHT, "TaskPreviews", [WARNING])}


def _documented(schema: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return body(schema) | {"parameters": list(parameters)}


@router.post("/tasks", status_code=201, response_model=TaskOut, responses=_ONE, openapi_extra=_documented("TaskIn", IDEMPOTENCY_KEY, PREFER))
async def submit_task(request: Request) -> Response:
    """Submit a task. Once this answers, the task can't be lost."""
    return await _one(request, submit_options(request))


@router.post("/tasks/validate", responses=_CHECKED_ONE, response_class=Response, openapi_extra=_documented("TaskIn"))
async def validate_task(request: Request) -> Response:
    """Check a task as its submission would, write nothing, and show it with its type's defaults: as `POST /tasks?validate_only=true` does."""
    return await _one(request, check_options(request))


async def _one(request: Request, options: SubmitOptions) -> Response:
    # The hottest call: no dependency is solved, and the body is read by one parser.
    service, namespace = service_of(request), namespace_of(request)
    sent = await json_object(request)
    key = _key("submit_task", options, namespace, sent)
    try:
        new = prepare(service.registry, sent, namespace=namespace, notifiers=service.settings.deliveries.subscriptions, queues=service.queues_of(namespace))
        if options.validate_only:
            await _refuse_conflicts(service, namespace, [new])
            return _json(valid_task(new), 200, _warned(service, [new.queue]))
        if options.wait is not None:
            new = replace(new, awaited=True)
        submitted, quota = await _submit(service, namespace, [new], key, "/payload")
    except InvalidInput as error:
        submitted, quota = await _made_before(service, key, error), {}
    (row,) = submitted.rows
    id_ = row["id"]
    request.scope[TASK_ID] = str(id_)
    headers = {"Location": f"{request.scope.get('root_path', '')}{BASE}/tasks/{id_}", **quota, **_warned(service, [row["queue"]])}
    if not submitted.replayed:
        service.submitted(row)
    if options.wait is not None:
        headers |= applied(options.wait)
        row = await _waited(service, namespace, id_, options.wait, awaited=not submitted.replayed) or row
    if submitted.replayed:
        return task_answer(request, row, 200, headers | etag(row["version"]) | _REPLAYED)
    if "version" in row:
        return task_answer(request, row, 201, headers | etag(row["version"]))
    # Nothing but what the caller has just sent, and what was decided of it.
    return _json(new_task(new, row), 201, headers | etag(1))


async def _waited(service: Service, namespace: str, task_id: UUID, seconds: int, *, awaited: bool) -> RowMapping | None:
    """A task's row after a wait. None: the database went away meanwhile, and the task is submitted all the same."""
    try:
        return await service.waits.until_ended(namespace, task_id, seconds, awaited=awaited)
    except Unavailable:
        return None


@router.post("/tasks/batch", status_code=201, response_model=TaskBatch, responses=_MANY, openapi_extra=_documented("TasksIn", IDEMPOTENCY_KEY))
async def submit_tasks(request: Request) -> Response:
    """Submit up to 1,000 tasks, all or none. They are answered in the order that they were sent in."""
    return await _many(request, submit_options(request))


@router.post("/tasks/batch/validate", responses=_CHECKED_MANY, response_class=Response, openapi_extra=_documented("TasksIn"))
async def validate_tasks(request: Request) -> Response:
    """Check tasks as their submission would, write nothing, and show them with their types' defaults."""
    return await _many(request, check_options(request))


async def _many(request: Request, options: SubmitOptions) -> Response:
    service, namespace = service_of(request), namespace_of(request)
    sent = await json_object(request)
    key = _key("submit_tasks", options, namespace, sent)
    try:
        notifiers, queues = service.settings.deliveries.subscriptions, service.queues_of(namespace)
        new = await _unhurried(prepare_all(service.registry, batch_of(sent), namespace=namespace, notifiers=notifiers, queues=queues))
        if options.validate_only:
            await _refuse_conflicts(service, namespace, new)
            return _json({"items": list(map(valid_task, new))}, 200, _warned(service, (task.queue for task in new)))
        submitted, quota = await _submit(service, namespace, new, key, "/tasks/{}/payload")
    except UniqueConflict as error:
        error.pointer = f"/tasks/{error.index}/unique_key"
        raise
    except InvalidInput as error:
        submitted, quota = await _made_before(service, key, error), {}
    told = quota | _warned(service, (row["queue"] for row in submitted.rows))
    if submitted.replayed:
        return tasks_answer(request, submitted.rows, 200, _REPLAYED | told)
    for row in submitted.rows:
        service.submitted(row)
    answered = {"items": [new_task(*pair) for pair in zip(new, submitted.rows, strict=True)]}
    return _json(answered, 201, told)


def _warned(service: Service, queues: Iterable[str]) -> dict[str, str]:
    """A header, if no live worker serves one of the queues."""
    warning = service.served.warning(queues)
    return {} if warning is None else {WARNING: warning}


async def _submit(service: Service, namespace: str, new: Sequence[NewTask], key: IdempotencyKey | None, at: str) -> tuple[Submitted, dict[str, str]]:
    """Submit tasks, if the namespace's quotas let them in, and what there is to tell of those. ``at`` is where the request has their payloads."""
    if service.quotas is None:
        return await service.commits.submit(*new, key=key), {}
    async with service.quotas.admitted(namespace, new, at) as told:
        return await service.commits.submit(*new, key=key), dict(told)


def _key(call: str, options: SubmitOptions, namespace: str, sent: Any) -> IdempotencyKey | None:
    if options.key is None or options.validate_only:
        return None
    return IdempotencyKey(namespace, options.key, idempotency.fingerprint([call, sent]))


async def _made_before(service: Service, key: IdempotencyKey | None, error: InvalidInput) -> Submitted:
    """What a key made while its body was still right: a type may have gone, or have changed its mind, since. Raises the error if it made
    nothing.
    """
    rows = await service.read(idempotency.replay, key) if key else None
    if rows is None:
        if isinstance(error, UnknownTaskType) and error.failed:
            raise await service.read(known_types.look_up, error) from None
        raise error
    return Submitted(rows, replayed=True)


async def _unhurried(tasks: Iterable[NewTask | None]) -> list[NewTask]:
    """The tasks, with turns for other requests in between. By time: one task takes microseconds, or a notifier's templates a tenth of a second."""
    new: list[NewTask] = []
    turn_ends = time.monotonic() + TURN
    for task in tasks:
        if task is not None:
            new.append(task)
        if time.monotonic() >= turn_ends:
            await asyncio.sleep(0)
            turn_ends = time.monotonic() + TURN
    return new


async def _refuse_conflicts(service: Service, namespace: str, new: Sequence[NewTask]) -> None:
    """Raises UniqueConflict if a live task has the unique_key of one of these now."""
    wanted = {task.unique_key: index for index, task in enumerate(new) if task.unique_key is not None}
    if wanted:
        for key, holder in (await service.read(lifecycle.unique_key_holders, namespace, wanted)).items():
            raise UniqueConflict(key, str(holder), wanted[key])


def _json(value: Any, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")
