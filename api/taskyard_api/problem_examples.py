"""Problems as the OpenAPI document shows them: one schema for all, and an example of each kind, made as the service makes them."""

from __future__ import annotations

from collections.abc import Mapping

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
from taskyard_api.errors import (
    BodyTooSlow,
    Forbidden,
    ForeignPage,
    MalformedBody,
    PayloadTooLarge,
    RateLimited,
    TooLarge,
    Unauthorized,
    UnknownHost,
    UnsupportedMedia,
)
from taskyard_api.plain_schemas import Schema, without_null
from taskyard_api.problems import INTERNAL, KINDS, Kind, Problem, internal, told

#: Stands for the fault that no error of ours names.
INTERNAL_ERROR = "internal"
Asked = type[TaskyardError] | str
_TASK = "01890a5d-ac96-774b-bcce-b302099a8057"
_AT = f"/api/v1/tasks/{_TASK}"
_SUBMIT = "/api/v1/tasks"
#: One of each kind, and where it was asked for.
SAMPLES: Mapping[type[TaskyardError], tuple[TaskyardError, str]] = {
    MalformedBody: (
        MalformedBody(
            "The request's body is not JSON that can be read: EOF while parsing an object at line 1 column 1.", [("", "EOF while parsing an object")]
        ),
        _SUBMIT,
    ),
    UnsupportedMedia: (UnsupportedMedia("Expected Content-Type: application/json, not text/plain."), _SUBMIT),
    UnknownTaskType: (UnknownTaskType("pages.fetsh", ["pages.fetch"]), _SUBMIT),
    InvalidInput: (InvalidInput("The task is not as expected.", [("/priority", "Input should be less than or equal to 9")]), _SUBMIT),
    NotFound: (NotFound(f"There is no task {_TASK} here."), _AT),
    IllegalTransition: (IllegalTransition("hold", "failed", ["retry"]), f"{_AT}/hold"),
    VersionConflict: (VersionConflict(4), _AT),
    UniqueConflict: (UniqueConflict("report-2030-01", _TASK), _SUBMIT),
    IdempotencyMismatch: (IdempotencyMismatch(), _SUBMIT),
    BodyTooSlow: (BodyTooSlow(60), _SUBMIT),
    TooLarge: (TooLarge(1_048_576), _SUBMIT),
    PayloadTooLarge: (PayloadTooLarge(10_000, [("/payload", "larger than 10000 bytes of JSON")]), _SUBMIT),
    Unauthorized: (Unauthorized(), _SUBMIT),
    Forbidden: (Forbidden("reader", "tasks:write"), _SUBMIT),
    ForeignPage: (ForeignPage(), _SUBMIT),
    UnknownHost: (UnknownHost(["evil.example"]), _SUBMIT),
    RateLimited: (RateLimited("Too many wrong access keys came from this address.", 2), _SUBMIT),
    Unavailable: (Unavailable(), _SUBMIT),
    PluginFailed: (PluginFailed("pages.fetch", "pages"), _SUBMIT),
}


def _kind(error: Asked) -> Kind:
    return INTERNAL if isinstance(error, str) else KINDS[error]


def status_of(error: Asked) -> int:
    """Its HTTP status."""
    return _kind(error).status


def name_of(error: Asked) -> str:
    """What its example is called: the error's name, in the slugs' spelling."""
    name = error if isinstance(error, str) else error.__name__
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).strip("-")


def examples() -> dict[str, Schema]:
    """``components.examples``: a problem of each kind."""
    made = {name_of(error): told(sample, at) for error, (sample, at) in SAMPLES.items()}
    made[INTERNAL_ERROR] = internal("9f1c2d3e4b5a69788796a5b4c3d2e1f0", _SUBMIT)
    return {name: {"summary": example["title"], "value": example} for name, example in made.items()}


def schemas() -> dict[str, Schema]:
    """``components.schemas``: `Problem`, and what it needs. One for all: a client reads `errors` without asking first which problem it has.

    A member that does not belong to a problem is left out, and never null.
    """
    whole = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    shared: dict[str, Schema] = whole.pop("$defs")
    whole["properties"] = {name: without_null(schema) for name, schema in whole["properties"].items()}
    return shared | {"Problem": whole}
