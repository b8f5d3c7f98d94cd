"""How every call answers: bytes from a typed model, and documented problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from taskyard_api.problems import MEDIA_TYPE

_MEANINGS = {
    400: "The body is not JSON.",
    401: "An access key is needed, and this is none, or a wrong one.",
    403: "The access key lacks the scope that this call needs; or, without keys, a web page of another origin asked.",
    404: "Nothing has this id or name here.",
    408: "The body did not arrive in time.",
    409: "The task's status does not allow this, or a live task has the unique_key.",
    412: "If-Match was given, and the task has another version.",
    413: "The body is too large.",
    415: "The body is of another kind than JSON.",
    422: "The input breaks a rule; `errors` says where.",
    429: "Too many requests; `Retry-After` says when to come back.",
    500: "A fault of the service; `id` is in its log too.",
    503: "The database can't be reached now.",
}
BODY = (400, 408, 413, 415)


def answer(adapter: TypeAdapter[Any], value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``value`` (a row or another object) as JSON, by the adapter's model."""
    return Response(adapter.dump_json(adapter.validate_python(value, from_attributes=True)), status, headers, "application/json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` for these problems, and for those that every call may have."""
    schema = {"$ref": "#/components/schemas/Problem"}
    wanted = sorted({*statuses, 422, 500, 503})
    return {status: {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in wanted}


def body(schema: str) -> dict[str, Any]:
    """OpenAPI's ``requestBody`` of a call that reads its body by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}}
