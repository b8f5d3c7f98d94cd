"""What the document says of events on their way out: each type as a CloudEvent, posted with the headers of Standard Webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from taskyard import tasklogs
from taskyard.events import EVENT_TYPES, MOST_TOLD
from taskyard.lifecycle import Status
from taskyard.notifiers import Event, TaskInfo
from taskyard_api.plain_schemas import Schema

MEDIA_TYPE = "application/cloudevents+json"
_TASK = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


class EventTask(BaseModel):
    """The event's task, as it stood when the event happened or later."""

    type: str
    queue: str
    priority: int = Field(ge=0, le=9)
    tags: list[str]
    status: Status


class EventData(BaseModel):
    """What happened. Each type of event adds what it has to say, such as `error` or `fraction`."""

    model_config = ConfigDict(extra="allow")

    task_id: UUID
    attempt: int
    task: EventTask
    result: Any = Field(None, description=f"With `task.succeeded`: what the handler returned, if that has up to {MOST_TOLD:,} bytes of JSON.")
    result_url: str | None = Field(None, description="With `task.succeeded`, instead of `result`: the path of a task whose result is larger, or was not told.")


class CloudEvent(BaseModel):
    """One step in a task's life: a CloudEvent 1.0 in JSON (structured mode). `source` and `id` together are unique."""

    specversion: str = Field(json_schema_extra={"const": "1.0"})
    id: str = Field(pattern="^evt_[0-9]+$", description="Receivers drop repeats by it.")
    source: str = Field(description="`/taskyard/` and the namespace.")
    type: str = Field(json_schema_extra={"enum": [*EVENT_TYPES, tasklogs.EVENT]})
    subject: UUID = Field(description="The task's id.")
    time: datetime
    datacontenttype: str = Field(json_schema_extra={"const": "application/json"})
    data: EventData


#: The headers of https://www.standardwebhooks.com, as notifiers that sign by it send them.
SIGNED = (
    ("webhook-id", "The same in every try of one delivery.", {"type": "string", "minLength": 1}, "dlv_7"),
    ("webhook-timestamp", "Seconds since 1970, when this try was made.", {"type": "string", "pattern": "^[0-9]+$"}, "1893499200"),
    (
        "webhook-signature",
        "Signatures, with a space between: `v1,` and Base64 of the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}`, keyed with the secret's bytes.",
        {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]+={0,2}( v1,[A-Za-z0-9+/]+={0,2})*$"},
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
)
_ANSWERS: Schema = {
    "2XX": {"description": "Taken. It is not sent again."},
    "410": {"description": "The receiver wants no more of this: it is not tried again."},
    "default": {"description": "Tried again later; after 429 and 503 not before `Retry-After`."},
}


#: One message of a live stream.
_MESSAGE: Schema = {
    "type": "object",
    "description": "One server-sent event of `GET /events` and `GET /tasks/{id}/stream`.",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$", "description": "What Last-Event-ID brings back."},
        "event": {
            "type": "string",
            "enum": [*EVENT_TYPES, tasklogs.EVENT, "error"],
            "description": "Left out with `named=false`. `error`, which is never left out, says in `data` why the stream ends.",
        },
        "data": {"type": "string", "description": 'JSON: a `CloudEvent`, or `{"detail": ...}` of an `error`.'},
    },
    "required": ["data"],
}


def schemas() -> dict[str, Schema]:
    """``components.schemas`` for events."""
    whole = CloudEvent.model_json_schema(ref_template="#/components/schemas/{model}")
    shared: dict[str, Schema] = whole.pop("$defs")
    return shared | {"CloudEvent": whole, "StreamMessage": _MESSAGE}


def webhooks(types: Sequence[str] = EVENT_TYPES) -> dict[str, Schema]:
    """The document's ``webhooks``: one for each type of event."""
    return {type_: {"post": _hook(type_)} for type_ in types}


def _hook(type_: str) -> Schema:
    schema = {"allOf": [{"$ref": "#/components/schemas/CloudEvent"}, {"type": "object", "properties": {"type": {"const": type_}}}]}
    parameters = [
        {"name": name, "in": "header", "required": True, "description": said, "schema": kind, "example": example} for name, said, kind, example in SIGNED
    ]
    return {
        "operationId": f"on_{type_.replace('.', '_')}",
        "summary": f"A route lets `{type_}` through",
        "description": "Sent by the notifier `webhook` to the address of a configured route, several times if it must be.",
        "tags": ["webhooks"],
        "parameters": parameters,
        "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": schema, "examples": {type_: {"value": _example(type_)}}}}},
        "responses": _ANSWERS,
        # openapi-generator makes calls of webhooks, whose Python is not valid; it leaves out what is marked so. The schemas stay.
        "x-internal": True,
        # Receivers check the signature; no key of the service is sent.
        "security": [],
    }


def _example(type_: str) -> Schema:
    status = {"task.submitted": "pending", "task.started": "running", "task.progress": "running"}.get(type_, type_.removeprefix("task."))
    known = status if status in ("pending", "running", "held", "succeeded", "failed", "cancelled", "expired") else "running"
    task = TaskInfo("default", "pages.fetch", "io", 5, ("nightly",), known)
    return Event("evt_42", type_, datetime(2030, 1, 31, 12, tzinfo=UTC), _TASK, 1, {}, task).to_cloudevent()
