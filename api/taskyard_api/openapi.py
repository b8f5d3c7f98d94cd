"""The OpenAPI 3.1 document: FastAPI's own, completed by what only the installed plugins, the error tree and the events know."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from taskyard.plugins import Registry
from taskyard.subscriptions import open_to_clients
from taskyard_api import problem_examples, typed, webhooks
from taskyard_api.access import ANY_KEY, OPEN, rule_for
from taskyard_api.body import MAX_BATCH
from taskyard_api.models import RECEIPT_BATCH
from taskyard_api.parameters import ACTION, DELIVERY_ACTION
from taskyard_api.patching import PATCH
from taskyard_api.routes.answers import headers, problems

Schema = dict[str, Any]
_BATCH: Schema = {
    "title": "TasksIn",
    "description": "Tasks that are submitted together, all or none.",
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {"$ref": "#/components/schemas/TaskIn"}, "minItems": 1, "maxItems": MAX_BATCH}},
    "required": ["tasks"],
    "additionalProperties": False,
}
_PREVIEWS: Schema = {
    "title": "TaskPreviews",
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/components/schemas/TaskPreview"}}},
    "required": ["items"],
}
#: Headers of answers, by name; `headers()` in routes/answers.py refers to them.
HEADERS: dict[str, tuple[str, Schema, str]] = {
    "ETag": ("The task's version, for If-Match and If-None-Match.", {"type": "string", "pattern": '^"[0-9]+"$'}, '"3"'),
    "Idempotency-Replayed": ("The task was made before, by the same Idempotency-Key.", {"type": "string", "const": "true"}, "true"),
    "Location": ("Where the task is.", {"type": "string"}, "/api/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057"),
    "Preference-Applied": ("The preference that was followed (RFC 7240).", {"type": "string", "pattern": "^wait=[0-9]+$"}, "wait=10"),
    "RateLimit": (
        "Where the namespace has a quota: tasks that may be submitted now, and seconds until it is as good as new.",
        {"type": "string", "pattern": '^"submissions";r=[0-9]+;t=[0-9]+$'},
        '"submissions";r=9;t=1',
    ),
    "RateLimit-Policy": (
        "Where the namespace has a quota: `q` submissions in `w` seconds (draft-ietf-httpapi-ratelimit-headers-10).",
        {"type": "string", "pattern": '^"submissions";q=[0-9]+;w=[0-9]+$'},
        '"submissions";q=10;w=1',
    ),
    "Retry-After": ("Seconds after which to come back.", {"type": "string", "pattern": "^[0-9]+$"}, "2"),
    "WWW-Authenticate": ("What is missing, or wrong (RFC 6750).", {"type": "string"}, 'Bearer realm="taskyard"'),
    "X-Request-ID": ("The request's id, as the service's log has it: the client's own, or a new one.", {"type": "string", "maxLength": 128}, "9f1c2d3e"),
}
_TAGS = {
    "tasks": "Submit tasks, look at them, move them.",
    "live": "What happens, as it happens: server-sent events.",
    "queues": "How much waits; pause and resume.",
    "deliveries": "What notifiers sent, failed to send, will retry.",
    "catalogue": "What is installed.",
    "health": "For probes and Prometheus.",
    "webhooks": "What a route's notifier posts to you.",
}
#: Calls that an answer leads to, by the operation that gives the answer: where its id goes.
_BY_ID = ("get_task", "change_task", "cancel_task", "retry_task", "hold_task", "release_task", "list_task_events", "get_place", "stream_task")


def document(app: FastAPI, registry: Registry, *, with_keys: bool, subscriptions: Sequence[str] = ()) -> Schema:
    """The whole document. Costs some milliseconds: keep the answer. ``subscriptions`` are the notifiers that a submission may name."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary="Typed background tasks, kept in PostgreSQL, done by plugins.",
        description=app.description,
        routes=app.routes,
        license_info={"name": "MIT", "identifier": "MIT"},
        tags=[{"name": name, "description": said} for name, said in _TAGS.items()],
    )
    components = found.setdefault("components", {})
    _name_tasks(found)
    schemas = components.setdefault("schemas", {})
    sent: list[TypeAdapter[Any]] = [PATCH, ACTION, DELIVERY_ACTION]
    for adapter in sent + ([RECEIPT_BATCH] if with_keys else []):
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}", mode="validation" if adapter in sent else "serialization")
        schemas |= schema.pop("$defs", {}) | {schema["title"]: schema}
    schemas |= typed.schemas(set(registry.handlers.values()), set(open_to_clients(registry, subscriptions))) | {"TasksIn": _BATCH, "TaskPreviews": _PREVIEWS}
    schemas |= problem_examples.schemas() | webhooks.schemas()
    components["examples"] = problem_examples.examples()
    components["headers"] = dict(_headers())
    found["webhooks"] = webhooks.webhooks()
    _show_submissions(found)
    _link(found)
    if with_keys:
        _ask_for_keys(found)
    else:
        for _, method, call in _calls(found):
            if method != "get":
                call["responses"]["403"] = problems(403)[403]
    for path, method, call in _calls(found):
        if rule_for(method.upper(), path) != OPEN:
            call["responses"]["421"] = problems(421)[421]
    for _, _, call in _calls(found):
        for response in call["responses"].values():
            response["headers"] = response.get("headers", {}) | headers("X-Request-ID")
    return found


def _calls(found: Schema) -> Iterator[tuple[str, str, Schema]]:
    """(path, method, operation)"""
    for path, methods in found["paths"].items():
        for method, call in methods.items():
            yield path, method, call


def _headers() -> Iterator[tuple[str, Schema]]:
    for name, (said, schema, example) in HEADERS.items():
        told = {"description": said, "schema": schema, "example": example}
        yield name, told | {"required": True}
        yield f"{name}.maybe", told


def _name_tasks(found: Schema) -> None:
    """Where an answer has a task, it has one of the installed types: `Task`, of which `TaskOut` is the last resort."""
    out = {"$ref": "#/components/schemas/TaskOut"}
    for holder in (found["paths"], found["components"]["schemas"]):
        _replace(holder, out, {"$ref": "#/components/schemas/Task"})


def _replace(value: Any, old: Schema, new: Schema) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if item == old:
            value[key] = copy.deepcopy(new)
        else:
            _replace(item, old, new)


def _show_submissions(found: Schema) -> None:
    examples = dict(typed.submissions(found["components"]["schemas"]))
    if not examples:
        return
    submit, batch = (found["paths"][f"/api/v1/tasks{rest}"]["post"]["requestBody"]["content"]["application/json"] for rest in ("", "/batch"))
    submit["examples"] = {type_: {"summary": f"Submit {type_}", "value": example} for type_, example in examples.items()}
    batch["examples"] = {"all": {"summary": "One task of each type", "value": {"tasks": list(examples.values())}}}


def _link(found: Schema) -> None:
    """From an answer with a task to what can be done with it."""
    operations = {call["operationId"]: call for _, _, call in _calls(found)}
    by_id = {name: {"operationId": name, "parameters": {"task_id": "$response.body#/id"}} for name in _BY_ID if name in operations}
    first = {name: {"operationId": name, "parameters": {"task_id": "$response.body#/items/0/id"}} for name in ("get_task", "cancel_task")}
    for name, status, links in (
        ("submit_task", "201", by_id),
        ("submit_tasks", "201", first),
        ("list_tasks", "200", first | {"list_tasks": _next("list_tasks")}),
        ("list_deliveries", "200", {"redeliver": {"operationId": "redeliver", "parameters": {"delivery_id": "$response.body#/items/0/id"}}}),
    ):
        operations[name]["responses"][status]["links"] = links


def _next(name: str) -> Schema:
    return {"operationId": name, "parameters": {"cursor": "$response.body#/next_cursor"}, "description": "The next page; repeat the filters."}


def _ask_for_keys(found: Schema) -> None:
    """Each call but those that are open: a key in one of two headers, the scope that it needs, and how it is refused."""
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An access key, `ty_...`."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
    }
    for path, method, call in _calls(found):
        needed = rule_for(method.upper(), path)
        if needed == OPEN:
            continue
        call["security"] = [{"bearer": []}, {"header": []}]
        call["responses"] |= {str(status): description for status, description in problems(401, 403, 429).items() if str(status) not in call["responses"]}
        if method != "get":
            _show_receipts(call)
        scope = "any access key" if needed == ANY_KEY else f"the scope `{needed or 'admin'}`"
        call["description"] = f"{call.get('description', '')}\n\nNeeds {scope}.".strip()


def _show_receipts(call: Schema) -> None:
    """A write answers a key without `tasks:read` with receipts of the tasks: see routes/answers.py."""
    for whole, receipt in (("Task", "TaskReceipt"), ("TaskBatch", "TaskReceipts")):
        task, withheld = ({"$ref": f"#/components/schemas/{name}"} for name in (whole, receipt))
        for status in ("200", "201"):
            content = call["responses"].get(status, {}).get("content", {}).get("application/json", {})
            shown = content.get("schema", {}).get("anyOf", [content.get("schema")])
            if task in shown:
                content["schema"] = {"anyOf": [*shown, withheld]}
