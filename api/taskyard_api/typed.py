"""What the document says of the installed task types: how each is submitted, and what a task of it looks like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from taskyard.handlers import Handler
from taskyard.schemas import ClientSchema
from taskyard.submission import TaskIn
from taskyard_api.fresh import VALIDATED
from taskyard_api.models import TaskOut

Schema = dict[str, Any]
# A dot sets what plugins bring apart: none of our own schemas has one in its name, but the problems.
_REFERENCE = "#/components/schemas/{kind}.{{model}}"
_START = "#/components/schemas/"
#: RunAt and delay are two ways to say one thing.
_ONE_START: Schema = {"not": {"required": ["run_at", "delay"], "properties": {"run_at": {"type": "string"}, "delay": {"type": "number"}}}}


def schemas(handlers: Iterable[Handler[Any, Any]], notifiers: Iterable[str] = ()) -> dict[str, Schema]:
    """``TaskIn``, a union discriminated by ``type``; ``Task``, any answer; and for each type a ``Submit.``, a ``Task.`` and what they need.

    ``notifiers`` are those that a submission may name.
    """
    installed = sorted(handlers, key=lambda handler: handler.type)
    envelope, row = _envelope(sorted(notifiers)), TaskOut.model_json_schema(mode="serialization", ref_template=_START + "{model}")
    row.pop("$defs", None)
    preview = _preview(envelope, row)
    if not installed:
        return {"TaskIn": envelope, "Task": {"title": "Task", "anyOf": [{"$ref": _START + "TaskOut"}]}, "TaskPreview": preview}
    payloads, models = _models(((handler, handler.payload) for handler in installed), "Payload", "validation")
    results, more = _models(((handler, handler.result) for handler in installed), "Result", "serialization")
    found = models | more | {"TaskPreview": preview}
    for handler in installed:
        found[f"Submit.{handler.type}"] = _submission(handler, envelope, payloads[handler.type], models)
        found[f"Task.{handler.type}"] = _task(handler, row, payloads[handler.type], results[handler.type])
    return found | {"TaskIn": _union(installed), "Task": _any_task(installed)}


def _envelope(notifiers: list[str]) -> Schema:
    schema = TaskIn.model_json_schema() | _ONE_START
    # Where the operator allows none, whatever is sent as `notify` is refused.
    notify = schema["properties"].pop("notify")
    if notifiers:
        subscriptions = next(option for option in notify["anyOf"] if option.get("type") == "array")
        subscriptions["items"]["properties"]["notifier"] = {"enum": notifiers}
        schema["properties"]["notify"] = notify
    return schema


def _models(adapters: Iterable[tuple[Handler[Any, Any], TypeAdapter[Any]]], kind: str, mode: Any) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The schema of each type, and the models that they refer to, under names of their own."""
    wanted = [(handler.type, mode, adapter) for handler, adapter in adapters]
    made, shared = TypeAdapter.json_schemas(wanted, ref_template=_REFERENCE.format(kind=kind), schema_generator=ClientSchema)
    # A model that is both payload and result is there twice: generated clients name classes by titles.
    models = {f"{kind}.{name}": {**schema, "title": f"{kind}.{name}"} for name, schema in shared.get("$defs", {}).items()}
    return {type_: schema for (type_, _), schema in made.items()}, models


def _union(installed: Iterable[Handler[Any, Any]]) -> Schema:
    mapping = {name: f"{_START}Submit.{handler.type}" for handler in installed for name in handler.names}
    options = [{"$ref": ref} for ref in dict.fromkeys(mapping.values())]
    return {"title": "TaskIn", "oneOf": options, "discriminator": {"propertyName": "type", "mapping": mapping}}


def _any_task(installed: Iterable[Handler[Any, Any]]) -> Schema:
    options = [*(f"{_START}Task.{handler.type}" for handler in installed), f"{_START}TaskOut"]
    description = (
        "A task. One of an installed type has that type's payload and result; of a type that is gone, or of another version of its plugin, it is a `TaskOut`."
    )
    return {"title": "Task", "description": description, "anyOf": [{"$ref": ref} for ref in options]}


def _name(handler: Handler[Any, Any]) -> Schema:
    return {"type": "string", "const": handler.type} if len(handler.names) == 1 else {"type": "string", "enum": list(handler.names)}


def _task(handler: Handler[Any, Any], row: Schema, payload: Schema, result: Schema) -> Schema:
    done = {"anyOf": [result, {"type": "null"}], "description": "What the handler returned."}
    properties = {**row["properties"], "type": _name(handler), "payload": payload, "result": done}
    return {**row, "title": f"Task.{handler.type}", "description": handler.description, "properties": properties}


def _preview(envelope: Schema, row: Schema) -> Schema:
    """What ``validate_only`` answers."""
    known = {**envelope["properties"], **row["properties"]}
    properties = {name: known[name] for name in VALIDATED}
    for name in ("run_at", "expires_at"):
        properties[name] = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}
    return {
        "title": "TaskPreview",
        "description": "A task as it would be submitted, with its type's defaults: what `validate_only` answers.",
        "type": "object",
        "properties": properties,
        "required": list(VALIDATED),
    }


def _submission(handler: Handler[Any, Any], envelope: Schema, payload: Schema, models: Mapping[str, Schema]) -> Schema:
    properties = {**envelope["properties"], "type": _name(handler), "payload": payload}
    schema = {**envelope, "title": f"Submit.{handler.type}", "description": handler.description, "properties": properties}
    try:
        example = _example(payload, models)
        handler.payload.validate_json(json.dumps(example), strict=True)
    except Exception:
        # A schema may refer to itself, and a validator raise anything: then there is no example, and all others' schemas are there.
        return schema
    return {**schema, "examples": [{"type": handler.type, "payload": example}]}


def submissions(found: Mapping[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Examples of submissions: each type that has one, by its name."""
    for name, schema in found.items():
        if name.startswith("Submit.") and schema.get("examples"):
            yield name.removeprefix("Submit."), schema["examples"][0]


def _example(schema: Schema, models: Mapping[str, Schema]) -> Any:
    """A value that a schema describes, from its own examples and defaults where it has them."""
    if "$ref" in schema:
        return _example(models.get(schema["$ref"].removeprefix(_START), {}), models)
    if schema.get("examples"):
        return schema["examples"][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if schema.get("enum"):
        return schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _example(options[0], models)
    if schema.get("type") == "object":
        return {name: _example(schema["properties"][name], models) for name in schema.get("required", ())}
    if schema.get("type") == "array":
        return [_example(schema.get("items", {}), models)] * schema.get("minItems", 0)
    return _scalar(schema)


def _scalar(schema: Schema) -> Any:
    if schema.get("type") == "string":
        by_format = {"uri": "https://example.com/", "date-time": "2030-01-31T12:00:00Z", "date": "2030-01-31", "email": "someone@example.com"}
        return by_format.get(schema.get("format", ""), "text".ljust(schema.get("minLength", 0), "."))
    if schema.get("type") in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return schema.get("type") == "boolean" or None
