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
from taskyard_api import plain_schemas, problem_examples, typed, webhooks
from taskyard_api.access import ANY_KEY, OPEN, rule_for
from taskyard_api.body import MAX_BATCH
from taskyard_api.parameters import ACTION, DELIVERY_ACTION
from taskyard_api.patching import PATCH
from taskyard_api.plain_schemas import Schema
from taskyard_api.routes.answers import headers, problems

_BATCH: Schema = {
    "title": "TasksIn",
    "description": "Tasks that are submitted together, all or none.",
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {"$ref": "#/components/schemas/TaskIn"}, "minItems": 1, "maxItems": MAX_BATCH}},
    "required": ["tasks"],
    "additionalProperties": False,
}
#: What routes read from a request's body by themselves.
_BODIES: tuple[TypeAdapter[Any], ...] = (PATCH, ACTION, DELIVERY_ACTION)
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
    "Taskyard-Warning": (
        "No live worker serves a queue that tasks were submitted to: they wait. As it was seen within the last seconds.",
        {"type": "string"},
        "no live worker serves the queue reports",
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


def document(app: FastAPI, registry: Registry, *, with_keys: bool, subscriptions: Sequence[str] = (), root_path: str = "") -> Schema:
    """The whole document. Costs some milliseconds: keep the answer.

    ``subscriptions`` are the notifiers that a submission may name; ``root_path`` is the prefix that a proxy strips. Without keys the document tells of
    them all the same: a client that is made of it can use a service that asks for them.
    """
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary="Typed background tasks, kept in PostgreSQL, done by plugins.",
        description=app.description,
        routes=app.routes,
        license_info={"name": "MIT", "identifier": "MIT"},
        tags=[{"name": name, "description": said} for name, said in _TAGS.items()],
        servers=[{"url": root_path or "/", "description": "This service."}],
    )
    components = found["components"]
    components["schemas"] = _schemas(components["schemas"], registry, subscriptions)
    components["examples"] = problem_examples.examples()
    components["headers"] = dict(_headers())
    found["webhooks"] = webhooks.webhooks()
    _name_tasks(found)
    _show_submissions(found)
    _link(found)
    _ask_for_keys(found, with_keys)
    for path, method, call in _calls(found):
        if rule_for(method.upper(), path) != OPEN:
            call["responses"]["421"] = problems(421)[421]
        for response in call["responses"].values():
            response["headers"] = response.get("headers", {}) | headers("X-Request-ID")
        for parameter in call.get("parameters", ()):
            _simplify_parameter(parameter)
    return found


def _schemas(declared: Schema, registry: Registry, subscriptions: Sequence[str]) -> Schema:
    """All components: those of FastAPI's routes, of the bodies that routes read by themselves, of problems and events, and of the plugins."""
    own = declared | {"TasksIn": _BATCH, "TaskPreviews": _PREVIEWS} | problem_examples.schemas() | webhooks.schemas()
    for adapter in _BODIES:
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
        own |= schema.pop("$defs", {}) | {schema["title"]: schema}
    # A task is shown as one of the installed types.
    del own["TaskOut"]
    # A copy: parts of schemas are shared, and some are constants of ours or of a plugin's model.
    found = copy.deepcopy(own | typed.schemas(set(registry.handlers.values()), set(open_to_clients(registry, subscriptions)), own))
    for name, schema in found.items():
        plain_schemas.plain(schema)
        schema["title"] = name
    return found


def _simplify_parameter(parameter: Schema) -> None:
    """A parameter is there or not there, and never null; generators name nothing by its title."""
    parameter["schema"] = plain_schemas.without_null(parameter["schema"])
    parameter["schema"].pop("title", None)


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
    """Where an answer has a task, it has one of the installed types: `Task`. What a write answers is a `TaskAnswer`, which may be a receipt."""
    whole, task, written = ({"$ref": f"#/components/schemas/{name}"} for name in ("TaskOut", "Task", "TaskAnswer"))
    _replace(found["components"]["schemas"]["TaskBatch"], whole, written)
    for _, method, call in _calls(found):
        _replace(call, whole, task if method == "get" else written)
    _replace(found["components"]["schemas"], whole, task)


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
    one = {type_: {"summary": f"Submit {type_}", "value": example} for type_, example in examples.items()}
    many = {"all": {"summary": "One task of each type", "value": {"tasks": list(examples.values())}}}
    for path, shown in (("", one), ("/validate", one), ("/batch", many), ("/batch/validate", many)):
        found["paths"][f"/api/v1/tasks{path}"]["post"]["requestBody"]["content"]["application/json"]["examples"] = shown


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


def _ask_for_keys(found: Schema, with_keys: bool) -> None:
    """Each call but those that are open: a key in one of two headers, the scope that it needs, and how it is refused."""
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An access key, `ty_...`."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
    }
    for path, method, call in _calls(found):
        needed = rule_for(method.upper(), path)
        if needed == OPEN:
            continue
        call["security"] = [*([] if with_keys else [{}]), {"bearer": []}, {"header": []}]
        call["responses"] |= {str(status): description for status, description in problems(401, 403, 429).items() if str(status) not in call["responses"]}
        scope = "Any access key may call it" if needed == ANY_KEY else f"An access key needs the scope `{needed or 'admin'}`"
        call["description"] = f"{call.get('description', '')}\n\n{scope}{'' if with_keys else ', where keys are asked for'}.".strip()
