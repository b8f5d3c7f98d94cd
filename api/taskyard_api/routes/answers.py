"""How every call answers: bytes from a typed model, and documented problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from pydantic import TypeAdapter

from taskyard.errors import IllegalTransition, InvalidInput, NotFound, TaskyardError, Unavailable, VersionConflict
from taskyard.ids import PLAIN, PublicIds
from taskyard_api.errors import BodyTooSlow, Forbidden, ForeignPage, MalformedBody, RateLimited, TooLarge, Unauthorized, UnknownHost, UnsupportedMedia
from taskyard_api.models import PUBLIC_IDS, RECEIPT, RECEIPT_BATCH, TASK, TASK_BATCH
from taskyard_api.problem_examples import INTERNAL_ERROR, Asked, name_of, status_of
from taskyard_api.problems import MEDIA_TYPE
from taskyard_api.service import may_read_tasks

_MEANINGS = {
    400: "The body is not JSON.",
    401: "An access key is needed, and this is none, or a wrong one.",
    403: "The access key lacks the scope that this call needs; or, without keys, a web page of another origin asked.",
    404: "Nothing has this id or name here.",
    408: "The body did not arrive in time.",
    409: "The status does not allow this, or a live task has the unique_key.",
    412: "If-Match was given, and the task has another version.",
    413: "The body is too large.",
    415: "The body is of another kind than JSON.",
    421: "The service does not answer to the name in `Host`.",
    422: "The input breaks a rule; `errors` says where.",
    429: "Too many requests; `Retry-After` says when to come back.",
    500: "A fault of the service; `id` is in its log too.",
    503: "The database can't be reached now.",
}
#: What a status means where a call says no more than the number.
_COMMON: Mapping[int, tuple[Asked, ...]] = {
    400: (MalformedBody,),
    401: (Unauthorized,),
    403: (Forbidden, ForeignPage),
    404: (NotFound,),
    408: (BodyTooSlow,),
    409: (IllegalTransition,),
    412: (VersionConflict,),
    413: (TooLarge,),
    415: (UnsupportedMedia,),
    421: (UnknownHost,),
    422: (InvalidInput,),
    429: (RateLimited,),
    500: (INTERNAL_ERROR,),
    503: (Unavailable,),
}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
BODY = (400, 408, 413, 415)


def answer(adapter: TypeAdapter[Any], value: Any, status: int = 200, headers: Mapping[str, str] | None = None, ids: PublicIds = PLAIN) -> Response:
    """``value`` (a row or another object) as JSON, by the adapter's model; its numbers as ``ids`` shows them."""
    made = adapter.validate_python(value, from_attributes=True, context={PUBLIC_IDS: ids})
    return Response(adapter.dump_json(made), status, headers, "application/json")


def task_answer(request: Request, row: Any, status: int, headers: Mapping[str, str]) -> Response:
    """A task after a write, as much of it as its caller may read: a key without `tasks:read` gets a receipt."""
    return answer(TASK if may_read_tasks(request) else RECEIPT, row, status, headers)


def tasks_answer(request: Request, rows: Sequence[Any], status: int, headers: Mapping[str, str]) -> Response:
    """:func:`task_answer` for the tasks of a batch."""
    return answer(TASK_BATCH if may_read_tasks(request) else RECEIPT_BATCH, {"items": rows}, status, headers)


def problems(*wanted: int | type[TaskyardError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` for these problems, and for those that every call may have: each with an example.

    A status stands for what it commonly means; an error's class for that error, as problems.KINDS tells it.
    """
    found: dict[int, dict[str, Asked]] = {}
    for one in (*wanted, 422, 500, 503):
        for error in _COMMON[one] if isinstance(one, int) else (one,):
            found.setdefault(status_of(error), {})[name_of(error)] = error
    return {status: _response(status, list(found[status].values())) for status in sorted(found)}


def _response(status: int, errors: list[Asked]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    examples = {name_of(error): {"$ref": f"#/components/examples/{name_of(error)}"} for error in errors}
    told = {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}}}
    return told | ({"headers": headers(_HEADERS[status])} if status in _HEADERS else {})


def headers(*names: str, maybe: Iterable[str] = ()) -> dict[str, Any]:
    """OpenAPI's ``headers`` of a response that always has these, and may have some more."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names} | {name: {"$ref": f"#/components/headers/{name}.maybe"} for name in maybe}


def body(schema: str) -> dict[str, Any]:
    """OpenAPI's ``requestBody`` of a call that reads its body by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}}
