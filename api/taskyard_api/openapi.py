"""The OpenAPI document: FastAPI's own, and a union over the installed task types as the body of a submission."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from taskyard.handlers import Handler
from taskyard.plugins import Registry
from taskyard.submission import TaskIn
from taskyard_api.access import ANY_KEY, OPEN, rule_for
from taskyard_api.body import MAX_BATCH
from taskyard_api.parameters import ACTION
from taskyard_api.patching import PATCH
from taskyard_api.problems import Problem
from taskyard_api.routes.answers import problems

Schema = dict[str, Any]
# A dot sets the plugins' models apart: none of our own schemas has one in its name.
_REFERENCE = "#/components/schemas/Payload.{model}"
_BATCH: Schema = {
    "title": "TasksIn",
    "description": "Tasks that are submitted together, all or none.",
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {"$ref": "#/components/schemas/TaskIn"}, "minItems": 1, "maxItems": MAX_BATCH}},
    "required": ["tasks"],
    "additionalProperties": False,
}


def document(app: FastAPI, registry: Registry, *, with_keys: bool) -> Schema:
    """The whole document. Costs some milliseconds: keep the answer."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for adapter in (PATCH, ACTION, TypeAdapter(Problem)):
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {schema["title"]: schema}
    schemas |= _submissions(registry) | {"TasksIn": _BATCH}
    if with_keys:
        _ask_for_keys(found)
    else:
        for calls in found["paths"].values():
            for method, call in calls.items():
                if method != "get":
                    call["responses"]["403"] = problems(403)[403]
    return found


def _ask_for_keys(found: Schema) -> None:
    """Each call but those that are open: a key in one of two headers, the scope that it needs, and how it is refused."""
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An access key, `ty_...`."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, calls in found["paths"].items():
        for method, call in calls.items():
            needed = rule_for(method.upper(), path)
            if needed == OPEN:
                continue
            call["security"] = [{"bearer": []}, {"header": []}]
            call["responses"] |= {str(status): description for status, description in problems(401, 403, 429).items() if str(status) not in call["responses"]}
            scope = "any access key" if needed == ANY_KEY else f"the scope `{needed or 'admin'}`"
            call["description"] = f"{call.get('description', '')}\n\nNeeds {scope}.".strip()


def _submissions(registry: Registry) -> dict[str, Schema]:
    """``TaskIn``, a union discriminated by ``type``, and one schema for each installed type."""
    handlers = [registry.handlers[type_] for type_ in sorted(registry.handlers)]
    envelope = TaskIn.model_json_schema()
    if not handlers:
        return {"TaskIn": envelope}
    payloads, shared = TypeAdapter.json_schemas([(h.type, "validation", h.payload) for h in handlers], ref_template=_REFERENCE)
    definitions = shared.get("$defs", {})
    schemas = {f"Payload.{name}": schema for name, schema in definitions.items()}
    for handler in handlers:
        schemas[f"Submit.{handler.type}"] = _submission(handler, envelope, payloads[(handler.type, "validation")], definitions)
    mapping = {name: f"#/components/schemas/Submit.{handler.type}" for handler in handlers for name in handler.names}
    one_of = [{"$ref": ref} for ref in dict.fromkeys(mapping.values())]
    union = {"title": "TaskIn", "oneOf": one_of, "discriminator": {"propertyName": "type", "mapping": mapping}}
    return {**schemas, "TaskIn": union}


def _submission(handler: Handler[Any, Any], envelope: Schema, payload: Schema, definitions: dict[str, Schema]) -> Schema:
    properties = {**envelope["properties"], "type": _type_schema(handler), "payload": payload}
    schema = {**envelope, "title": f"Submit.{handler.type}", "description": handler.description, "properties": properties}
    try:
        example = _example(payload, definitions)
        handler.payload.validate_python(example)
    except Exception:
        # A schema may refer to itself, and a validator raise anything: then there is no example, and all others' schemas are there.
        return schema
    return {**schema, "examples": [{"type": handler.type, "payload": example}]}


def _type_schema(handler: Handler[Any, Any]) -> Schema:
    if not handler.aliases:
        return {"type": "string", "const": handler.type}
    return {"type": "string", "enum": list(handler.names), "description": f"`{handler.type}`; its older names are taken as well."}


def _example(schema: Schema, definitions: dict[str, Schema]) -> Any:
    """A value that a schema describes, from its own examples and defaults where it has them."""
    if "$ref" in schema:
        return _example(definitions.get(schema["$ref"].removeprefix("#/components/schemas/Payload."), {}), definitions)
    if schema.get("examples"):
        return schema["examples"][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if schema.get("enum"):
        return schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _example(options[0], definitions)
    if schema.get("type") == "object":
        return {name: _example(schema["properties"][name], definitions) for name in schema.get("required", ())}
    if schema.get("type") == "array":
        return [_example(schema.get("items", {}), definitions)] * schema.get("minItems", 0)
    return _scalar(schema)


def _scalar(schema: Schema) -> Any:
    if schema.get("type") == "string":
        by_format = {"uri": "https://example.com/", "date-time": "2030-01-31T12:00:00Z", "date": "2030-01-31", "email": "someone@example.com"}
        return by_format.get(schema.get("format", ""), "text".ljust(schema.get("minLength", 0), "."))
    if schema.get("type") in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return schema.get("type") == "boolean" or None
