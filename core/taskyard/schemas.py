"""JSON Schemas that clients are shown: built by Pydantic, and checked to be JSON that any document can hold.

What the service tells of one plugin's models stands in one document with what it tells of all others'. So a schema that could spoil it is found when
the plugin is loaded, and named by its field.
"""

from __future__ import annotations

import functools
import json
import math
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core.core_schema import TaggedUnionSchema

from taskyard.storable import escape_pointer, storable_text

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

Schema = dict[str, Any]
#: Levels that are looked through; deeper than Python's own JSON goes.
_MAX_DEPTH = 200
#: Digits of a number that Python writes.
_MAX_DIGITS = 4300


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
#: JSON Schema 2020-12, and the words that OpenAPI 3.1 adds to it.
_OPENAPI = {
    "$id": "urn:taskyard:schemas-of-openapi",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$dynamicAnchor": "meta",
    "$ref": "https://json-schema.org/draft/2020-12/schema",
    "properties": {
        "discriminator": {"type": "object", "properties": {"propertyName": {"type": "string"}, "mapping": _TEXTS}, "required": ["propertyName"]},
        "xml": {"type": "object"},
        "externalDocs": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
    },
}


class UnusableSchema(ValueError):
    """No JSON Schema can be built, or it can't be shown; says at which field."""


class ClientSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema, as OpenAPI takes it."""

    #: A default that is no JSON is left out without a warning in the log for each document: it is a service's own, and no client's.
    ignored_warning_kinds = typing.cast(Any, {"skipped-choice", "non-serializable-default"})

    def tagged_union_schema(self, schema: TaggedUnionSchema) -> Schema:
        """A discriminator refers to its options by name. An option that is a union itself has none: there, ``oneOf`` alone tells them apart."""
        told = super().tagged_union_schema(schema)
        mapping = told.get("discriminator", {}).get("mapping", {})
        if not all(isinstance(option, str) for option in mapping.values()):
            del told["discriminator"]
        return told


def schema_of(kind: TypeAdapter[Any] | type[BaseModel], mode: JsonSchemaMode = "validation") -> Schema:
    """The JSON Schema (2020-12) of a type.

    Raises:
        UnusableSchema: it can't be built, or it is not JSON, not valid, or refers to what is not in it.
    """
    try:
        adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
        schema = adapter.json_schema(mode=mode, schema_generator=ClientSchema)
    except Exception as error:  # Pydantic raises many kinds, and a plugin's own types any
        model = kind._type if isinstance(kind, TypeAdapter) else kind
        at = f" for {culprit}" if (culprit := _culprit(model, mode, set())) else ""
        # Pydantic looks references up.
        problem = f"it refers to {error}, which is not there" if str(error).startswith("'#") else storable_text(error, 1000)
        raise UnusableSchema(f"no JSON Schema can be built{at}: {problem}") from error
    if fault := _fault(schema):
        pointer, problem = fault
        raise UnusableSchema(f"its JSON Schema can't be shown: {_named(schema, pointer)} (at {pointer or 'the top'}): {problem}")
    return schema


def _culprit(kind: Any, mode: JsonSchemaMode, seen: set[int]) -> str | None:
    """The innermost field for which no schema can be built, such as ``the field 'call' of Work``; or the model, if it is none of its fields."""
    for model in [kind, *_arguments(kind)]:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or id(model) in seen or _can_be_built(model, mode):
            continue
        seen.add(id(model))
        for name, field in model.model_fields.items():
            whole = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            if not _can_be_built(whole, mode):
                return _culprit(field.annotation, mode, seen) or f"the field {name!r} of {model.__name__}"
        return model.__name__
    return None


def _arguments(kind: Any) -> Iterator[Any]:
    for argument in typing.get_args(kind):
        yield argument
        yield from _arguments(argument)


def _can_be_built(annotation: Any, mode: JsonSchemaMode) -> bool:
    try:
        TypeAdapter(annotation).json_schema(mode=mode, schema_generator=ClientSchema)
    except Exception:
        return False
    return True


def _fault(schema: Any) -> tuple[str, str] | None:
    """The first thing for which a schema can't be shown: its JSON pointer, and what is wrong."""
    if not isinstance(schema, dict):
        return "", f"a {type(schema).__name__} is no JSON Schema"
    if problem := next(_no_json(schema, "", 0), None):
        return problem
    try:
        json.dumps(schema, allow_nan=False)
        if error := _invalid(schema):
            pointer = "".join(f"/{escape_pointer(str(part))}" for part in error.absolute_path)
            return pointer, f"it is not valid: {storable_text(error.message, 500)}"
    except Exception as error:
        return "", f"it is not JSON: {storable_text(error, 500)}"
    return None


def _invalid(schema: Schema) -> ValidationError | None:
    # Here, not above: who only declares or submits need not wait for it.
    from jsonschema.exceptions import best_match

    found: ValidationError | None = best_match(_dialect().iter_errors(schema))
    return found


@functools.cache
def _dialect() -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(_OPENAPI)


def _no_json(value: Any, pointer: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _MAX_DEPTH:
        yield pointer, "it is nested too deeply, or holds itself"
    elif isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                yield pointer, f"a name is {_a(name)}, and not a text"
                return
            yield from _no_json(name, pointer, depth + 1)
            yield from _no_json(inner, f"{pointer}/{escape_pointer(name)}", depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _no_json(inner, f"{pointer}/{number}", depth + 1)
    elif problem := _scalar_problem(value):
        yield pointer, problem


def _scalar_problem(value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if value.isascii() or _is_text(value) else "an unpaired surrogate is not a character"
    if isinstance(value, int):
        return None if abs(value) < 10**_MAX_DIGITS else f"a number of more than {_MAX_DIGITS} digits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "NaN and infinities are not JSON; leave it out, or use None"
    return f"{_a(value)} is not JSON; write it as clients would send it"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _a(value: Any) -> str:
    return f"a value of the type {type(value).__name__}"


def _named(schema: Schema, pointer: str) -> str:
    """What a pointer into a schema is about, for people: ``the field 'most' of Limits``."""
    parts = pointer.split("/")[1:]
    model, field = str(schema.get("title", "the whole schema")), None
    while len(parts) >= 2 and parts[0] in ("$defs", "properties"):
        model, field = (parts[1], None) if parts[0] == "$defs" else (model, parts[1])
        parts = parts[2:]
    return model if field is None else f"the field {field!r} of {model}"


def check_text(text: str) -> None:
    """Refuse a text that no document can hold.

    Raises:
        UnusableSchema: it has an unpaired surrogate.
    """
    if problem := _scalar_problem(text):
        raise UnusableSchema(problem)
