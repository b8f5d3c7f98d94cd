"""The one place that turns errors into HTTP: problem details (RFC 9457), one slug for each kind of error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from taskyard.errors import (
    IdempotencyMismatch,
    IllegalTransition,
    InvalidInput,
    NotFound,
    PluginFailed,
    TaskyardError,
    Unavailable,
    UniqueConflict,
    UnknownTaskType,
    VersionConflict,
)
from taskyard.validation import MAX_PROBLEMS
from taskyard_api.errors import (
    BodyTooSlow,
    Forbidden,
    ForeignPage,
    MalformedBody,
    PayloadTooLarge,
    QuotaExceeded,
    RateLimited,
    TooLarge,
    Unauthorized,
    UnknownHost,
    UnsupportedMedia,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:taskyard:problem:"
RETRY_AFTER = "2"
#: Seconds after which a client may look whether a plugin has been mended. A person does that.
MENDED_AFTER = "30"
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one class of errors is told over HTTP."""

    slug: str
    status: int
    title: str


INTERNAL = Kind("internal", 500, "Something went wrong here")
STOPPING = Kind("unavailable", 503, "The service is stopping")
NOT_FOUND = Kind("not-found", 404, "Not found")
INVALID = Kind("invalid-request", 422, "The request is not as expected")
KINDS: Mapping[type[Exception], Kind] = {
    MalformedBody: Kind("invalid-request", 400, "The request's body is not JSON"),
    UnsupportedMedia: Kind("invalid-request", 415, "The request's body is not JSON"),
    UnknownTaskType: Kind("unknown-task-type", 422, "Unknown task type"),
    InvalidInput: INVALID,
    NotFound: NOT_FOUND,
    IllegalTransition: Kind("illegal-transition", 409, "The status does not allow this"),
    VersionConflict: Kind("version-conflict", 412, "The task has changed meanwhile"),
    UniqueConflict: Kind("unique-conflict", 409, "A live task has this unique_key"),
    IdempotencyMismatch: Kind("idempotency-mismatch", 422, "The Idempotency-Key was used with another body"),
    BodyTooSlow: Kind("invalid-request", 408, "The request's body came too slowly"),
    PayloadTooLarge: Kind("too-large", 413, "A payload is too large"),
    TooLarge: Kind("too-large", 413, "The request's body is too large"),
    Unauthorized: Kind("unauthorized", 401, "An access key is needed"),
    Forbidden: Kind("forbidden", 403, "The access key may not do this"),
    ForeignPage: Kind("forbidden", 403, "The page may not do this"),
    UnknownHost: Kind("forbidden", 421, "The service has another name"),
    RateLimited: Kind("rate-limited", 429, "Too many requests"),
    PluginFailed: Kind("unavailable", 503, "The plugin of this task type has failed"),
    Unavailable: Kind("unavailable", 503, "The service can't use its database now"),
}


class ProblemPart(BaseModel):
    """One place that is wrong. For a query parameter, the pointer is its name after a slash."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the request's body.")
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457). `type` is stable and ends in the slug."""

    type: str = Field(pattern=f"^{TYPE_PREFIX}[a-z-]+$", examples=sorted({TYPE_PREFIX + kind.slug for kind in (*KINDS.values(), INTERNAL)}))
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ProblemPart] | None = Field(None, description="With invalid-request and unknown-task-type, and with unique-conflict in a batch.")
    near: list[str] | None = Field(None, description="With unknown-task-type: installed types with a similar name.")
    task_type: str | None = Field(
        None, description="The type that was asked for, or the first in a batch: with unknown-task-type, and unavailable with a plugin."
    )
    task_status: str | None = Field(None, description="With illegal-transition: the task's status.")
    delivery_status: str | None = Field(None, description="With illegal-transition: the delivery's status, where it is about one.")
    allowed: list[str] | None = Field(None, description="With illegal-transition: the verbs that the status allows.")
    task_id: str | None = Field(None, description="With unique-conflict: the task that has the key.")
    unique_key: str | None = Field(None, description="With unique-conflict: the key.")
    plugin: str | None = Field(None, description="With unavailable: the plugin that has failed, if it is that.")
    version: int | None = Field(None, description="With version-conflict: the task's version now.")
    id: str | None = Field(None, description="With internal: what to look for in the service's log.")


def document(kind: Kind, detail: str, instance: str, **members: Any) -> dict[str, Any]:
    """A problem document. ``instance`` is the path that was asked for."""
    return {
        "type": TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": quote(instance, safe="/:@!$&'()*+,;=-._~"),
        **members,
    }


def problem(kind: Kind, detail: str, instance: str, headers: Mapping[str, str] | None = None, **members: Any) -> Response:
    """A problem response."""
    return Response(json.dumps(document(kind, detail, instance, **members)), kind.status, dict(headers or {}), MEDIA_TYPE)


def told(error: TaskyardError, instance: str) -> dict[str, Any]:
    """The problem document of an error of ours."""
    return document(kind_of(error), str(error), instance, **_members(error))


def internal(id: str, instance: str) -> dict[str, Any]:
    """The problem document of a fault that nobody has foreseen; the log has more under the id."""
    return document(INTERNAL, f"This is a fault of the service. Its log has more under the id {id}.", instance, id=id)


def stopping(instance: str) -> Response:
    """The answer to a request that a stop has ended."""
    detail = "The service stops, and this took too long to wait for. It may have been done all the same."
    return problem(STOPPING, detail, instance, {"Retry-After": RETRY_AFTER})


def kind_of(error: TaskyardError) -> Kind:
    """The most special kind that an error has."""
    return next((KINDS[cls] for cls in type(error).__mro__ if cls in KINDS), INTERNAL)


def instance_of(request: Request) -> str:
    """The path that the client asked for, before it was made canonical."""
    asked: str = request.scope.get("taskyard.path", request.url.path)
    return asked


async def on_taskyard_error(request: Request, error: Exception) -> Response:
    """Any error of the tree in taskyard.errors."""
    assert isinstance(error, TaskyardError)
    kind = kind_of(error)
    if kind is INTERNAL:
        raise error
    return Response(json.dumps(told(error, instance_of(request))), kind.status, _headers(error), MEDIA_TYPE)


def _headers(error: TaskyardError) -> dict[str, str]:
    if isinstance(error, PluginFailed):
        return {"Retry-After": MENDED_AFTER}
    if isinstance(error, Unavailable):
        return {"Retry-After": RETRY_AFTER}
    if isinstance(error, RateLimited):
        return {"Retry-After": str(error.retry_after)} | dict(error.headers if isinstance(error, QuotaExceeded) else {})
    # RFC 6750, section 3.
    return {"WWW-Authenticate": error.challenge} if isinstance(error, Unauthorized | Forbidden) else {}


def _members(error: TaskyardError) -> dict[str, Any]:
    if isinstance(error, IllegalTransition):
        return {f"{error.subject}_status": error.status, "allowed": error.allowed}
    if isinstance(error, PluginFailed):
        return {"plugin": error.plugin, "task_type": error.type[:200]}
    if isinstance(error, VersionConflict):
        return {"version": error.version}
    if isinstance(error, UniqueConflict):
        where = {"errors": [{"pointer": error.pointer, "detail": "a live task has this unique_key"}]} if error.pointer else {}
        return where | {"task_id": error.task_id, "unique_key": error.unique_key}
    if isinstance(error, PayloadTooLarge):
        return {"errors": [{"pointer": pointer, "detail": detail} for pointer, detail in error.problems[:MAX_PROBLEMS]]}
    if isinstance(error, InvalidInput):
        near = {"near": error.near, "task_type": error.type[:200]} if isinstance(error, UnknownTaskType) else {}
        return near | {"errors": [{"pointer": pointer, "detail": detail} for pointer, detail in error.problems]}
    return {}


async def on_bad_parameters(request: Request, error: Exception) -> Response:
    """Query parameters that FastAPI refused."""
    assert isinstance(error, RequestValidationError)
    found = [{"pointer": "/" + "/".join(str(part) for part in e["loc"][1:]), "detail": str(e["msg"])} for e in error.errors()[:MAX_PROBLEMS]]
    names = ", ".join(dict.fromkeys(part["pointer"].split("/")[1] for part in found))
    return problem(INVALID, f"The query is not as expected: {names}.", instance_of(request), errors=found)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What routing answers: no such path, no such method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(NOT_FOUND, _nothing_at(instance_of(request), request.scope.get("root_path", "")), instance_of(request))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        kind, detail = Kind(INVALID.slug, 405, "Method not allowed"), f"This address answers to {headers['Allow']}."
    else:
        kind, detail = Kind(INVALID.slug, error.status_code, INVALID.title), str(error.detail)
    return problem(kind, detail, instance_of(request), headers)


def _nothing_at(asked: str, prefix: str) -> str:
    if prefix and asked.startswith(f"{prefix}/"):
        return f"There is nothing at this address. The proxy has to strip {prefix} (api.root_path) from the path before it sends the request on."
    return f"There is nothing at this address. See {prefix}/docs."


def _methods(request: Request) -> Sequence[str]:
    """All methods of this path: Starlette's own answer names those of one route only."""
    routes = request.app.router.routes
    found = {m for m in METHODS if any(route.matches({**request.scope, "method": m})[0] is Match.FULL for route in routes)}
    # Where GET is, so is HEAD: see edge.py.
    return sorted(found | {"HEAD"} if "GET" in found else found)
