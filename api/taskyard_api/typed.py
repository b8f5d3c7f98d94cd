"""What the document says of the installed task types: how each is submitted, and what a task of it looks like.

Unions are ``oneOf`` with a discriminator, and exact: whatever is sent or answered fits one option. docs/decisions/0026-unions-for-generators.md says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import structlog
from pydantic import TypeAdapter

from taskyard.handlers import Handler
from taskyard.schemas import ClientSchema
from taskyard.submission import TaskIn
from taskyard_api.fresh import VALIDATED
from taskyard_api.models import TaskOut, TaskReceipt
from taskyard_api.plain_schemas import Schema, each, or_null
from taskyard_api.schema_names import SchemaNames

log = structlog.get_logger(__name__)
AnyHandler = Handler[Any, Any]
_START = "#/components/schemas/"
#: The document's own schemas that are made here.
OWN = ("OtherTask", "Task", "TaskAnswer", "TaskIn", "TaskPreview", "TaskReceipt")
#: RunAt and delay are two ways to say one thing. Generators take the properties of a ``not`` for all that there are; ``if`` they leave alone.
_ONE_START: Schema = {
    "if": {"properties": {"run_at": {"type": "string"}}, "required": ["run_at"]},
    "then": {"properties": {"delay": {"type": "null"}}},
}
_INLINE = ("type", "$ref", "format", "description", "title", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern")


def reference(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": _START + name}


def schemas(handlers: Iterable[AnyHandler], notifiers: Iterable[str], taken: Iterable[str]) -> dict[str, Schema]:
    """What is sent and answered: ``TaskIn``, ``Task``, ``TaskAnswer`` and so on, and for each type a `Submit...`, a `Task...` and what they need.

    ``notifiers`` are those that a submission may name, ``taken`` the names of the document's other schemas.
    """
    installed = sorted(handlers, key=attrgetter("type"))
    names = SchemaNames([*taken, *OWN])
    envelope, row = _envelope(sorted(notifiers)), _row()
    plainest = sorted(installed, key=_punctuation)
    submits = {handler: names.name("Submit", handler.type) for handler in plainest}
    tasks = {handler: names.name("Task", handler.type) for handler in plainest}
    payloads, found = _models(installed, "Payload", "validation", names)
    results, more = _models(installed, "Result", "serialization", names)
    found |= more | {"OtherTask": _other(row, installed), "TaskPreview": _preview(envelope, row), "TaskReceipt": _receipt(row)}
    for handler in installed:
        found[submits[handler]] = _submission(handler, submits[handler], envelope, payloads[handler], found)
        found[tasks[handler]] = _task(handler, tasks[handler], row, payloads[handler], results[handler])
    found["TaskIn"] = _union("TaskIn", "A task to submit.", submits) if installed else envelope
    found["Task"] = _union("Task", _ANY_TASK, tasks, "OtherTask")
    found["TaskAnswer"] = _union("TaskAnswer", _ANSWER, tasks, "OtherTask", "TaskReceipt")
    return found


def _punctuation(handler: AnyHandler) -> tuple[int, str]:
    """Of types whose names differ in punctuation only, the one with dots has the name without an end."""
    return sum(handler.type.count(mark) for mark in "-_"), handler.type


_ANY_TASK = (
    "A task. One of an installed type has that type's payload and result; one of a type that is gone is an `OtherTask`. A task that another version of "
    "its plugin has stored may differ from both."
)
_ANSWER = "What a write answers: the task, or to a key without the scope `tasks:read` its receipt."


def _row() -> Schema:
    """An answer with a task has all its members always."""
    row = TaskOut.model_json_schema(mode="serialization", ref_template=_START + "{model}")
    row.pop("$defs", None)
    return {**row, "required": list(row["properties"])}


def _envelope(notifiers: list[str]) -> Schema:
    schema = TaskIn.model_json_schema() | _ONE_START
    # Where the operator allows none, whatever is sent as `notify` is refused.
    notify = schema["properties"].pop("notify")
    if notifiers:
        subscriptions = next(option for option in notify["anyOf"] if option.get("type") == "array")
        subscriptions["items"]["properties"]["notifier"] = {"type": "string", "enum": notifiers}
        schema["properties"]["notify"] = notify
    return schema


def _models(installed: Sequence[AnyHandler], kind: str, mode: Any, names: SchemaNames) -> tuple[dict[AnyHandler, Schema], dict[str, Schema]]:
    """The payload or result of each type, and the components that they refer to.

    A model that is both is there twice: what may be left out of a payload is always in a result. Each plugin is asked for by itself, so that
    another plugin's model of the same name changes no names.
    """
    of_types: dict[AnyHandler, Schema] = {}
    components: dict[str, Schema] = {}
    for plugin, group in groupby(sorted(installed, key=attrgetter("plugin", "type")), key=attrgetter("plugin")):
        own = list(group)
        wanted = [(handler.type, mode, getattr(handler, kind.lower())) for handler in own]
        try:
            made, shared = TypeAdapter.json_schemas(wanted, ref_template=_START + "{model}", schema_generator=ClientSchema)
        except Exception as error:
            # Each of them could be built when the plugin was loaded: a model's own hook answers otherwise now.
            log.error("document.incomplete", plugin=plugin, types=[handler.type for handler in own], error=repr(error), exc_info=error)
            of_types |= {handler: {} for handler in own}
            continue
        renamed = {name: names.name(kind, plugin, name) for name in shared.get("$defs", {})}
        for name, schema in shared.get("$defs", {}).items():
            _rename(schema, renamed)
            components[renamed[name]] = {**schema, "title": renamed[name]}
        for handler in own:
            schema = made[handler.type, mode]
            _rename(schema, renamed)
            if schema.keys() - set(_INLINE):
                # Generators name it after the first place that has it otherwise.
                name = names.name(kind, handler.type)
                components[name], schema = {**schema, "title": name}, reference(name)
            of_types[handler] = schema
    return of_types, components


def _rename(schema: Schema, names: Mapping[str, str]) -> None:
    def rename(part: Schema) -> None:
        if isinstance(part.get("$ref"), str):
            part["$ref"] = _renamed(part["$ref"], names)
        if mapping := part.get("discriminator", {}).get("mapping"):
            part["discriminator"]["mapping"] = {value: _renamed(target, names) for value, target in mapping.items()}

    each(schema, rename)


def _renamed(target: str, names: Mapping[str, str]) -> str:
    name = target.removeprefix(_START)
    return _START + names.get(name, name)


def _union(title: str, description: str, named: Mapping[AnyHandler, str], *more: str) -> Schema:
    """One of the types' schemas, told apart by ``type``; or one of ``more``, which no value of ``type`` leads to."""
    by_type = sorted(named.items(), key=lambda pair: pair[0].type)
    options = [reference(name) for name in (*(name for _, name in by_type), *more)]
    mapping = {alias: _START + name for handler, name in by_type for alias in handler.names}
    told = {"discriminator": {"propertyName": "type", "mapping": mapping}} if mapping else {}
    return {"title": title, "description": description, "oneOf": options} | told


def _name(handler: AnyHandler) -> Schema:
    return {"type": "string", "const": handler.type} if len(handler.names) == 1 else {"type": "string", "enum": list(handler.names)}


def _task(handler: AnyHandler, title: str, row: Schema, payload: Schema, result: Schema) -> Schema:
    done = {**or_null(result), "description": "What the handler returned; null until then."}
    properties = {**row["properties"], "type": _name(handler), "payload": payload, "result": done}
    return {**row, "title": title, "description": handler.description, "properties": properties}


def _other(row: Schema, installed: Sequence[AnyHandler]) -> Schema:
    """A task of any other type. The pattern keeps ``oneOf`` exact, also for generated clients that try one option after the other."""
    known = "|".join(name.replace(".", r"\.") for handler in installed for name in handler.names)
    type_: Schema = {"type": "string"} | ({"pattern": f"^(?!(?:{known})$)"} if known else {})
    return {**row, "title": "OtherTask", "description": "A task of a type that is not installed any more.", "properties": {**row["properties"], "type": type_}}


def _receipt(row: Schema) -> Schema:
    """A receipt can name no namespace, so that none is a task, and no task a receipt."""
    shown = TaskReceipt.model_json_schema(mode="serialization")
    withheld = {"type": "string", "maxLength": 0, "description": "Not there: by it, a task is known from its receipt."}
    properties = {**row["properties"], "namespace": withheld}
    return {**shown, "properties": properties, "required": list(shown["properties"])}


def _preview(envelope: Schema, row: Schema) -> Schema:
    """What a validation answers."""
    known = {**envelope["properties"], **row["properties"]}
    return {
        "title": "TaskPreview",
        "description": "A task as it would be submitted, with its type's defaults.",
        "type": "object",
        "properties": {name: known[name] for name in VALIDATED},
        "required": list(VALIDATED),
    }


def _submission(handler: AnyHandler, title: str, envelope: Schema, payload: Schema, models: Mapping[str, Schema]) -> Schema:
    properties = {**envelope["properties"], "type": _name(handler), "payload": payload}
    schema = {**envelope, "title": title, "description": handler.description, "properties": properties}
    try:
        example = _example(payload, models)
        handler.payload.validate_json(json.dumps(example), strict=True)
    except Exception:
        # A schema may refer to itself, and a validator raise anything: then there is no example, and all others' schemas are there.
        return schema
    return {**schema, "examples": [{"type": handler.type, "payload": example}]}


def submissions(found: Mapping[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Examples of submissions: each type that has one, by its name."""
    for option in found["TaskIn"].get("oneOf", ()):
        for example in found[option["$ref"].removeprefix(_START)].get("examples", ()):
            yield example["type"], example


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
