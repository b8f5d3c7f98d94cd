"""Payloads to test a handler with: those that its JSON Schema tells of, and odd ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as SchemaViolation
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from taskyard.errors import InvalidInput
from taskyard.payloads import payload_json

#: How deep a schema that contains itself is followed.
_DEPTH = 12


def example_payloads(schema: dict[str, Any]) -> list[Any]:
    """Whole payloads that the schema tells of: its examples, or else one put together from those of its required fields."""
    resolved = _resolved(schema, schema)
    if resolved.get("examples"):
        return list(resolved["examples"])
    made = _example(resolved, schema, 0)
    return [] if made is _NONE else [made]


_NONE = object()


def _example(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    """One value of a schema, from its own examples, default, constant or choices; ``_NONE`` where it tells of none."""
    schema = _resolved(schema, root)
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("type") != "object" or depth > _DEPTH:
        return _NONE
    properties = schema.get("properties", {})
    made = {name: _example(properties.get(name, {}), root, depth + 1) for name in schema.get("required", [])}
    return _NONE if _NONE in made.values() else made


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a reference to one of the root's definitions, which are the only ones that Pydantic makes."""
    reference = schema.get("$ref", "")
    if not reference.startswith("#/$defs/"):
        return schema
    return {**root.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {}), **{key: value for key, value in schema.items() if key != "$ref"}}


def wrong_examples(schema: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the examples in a schema, at every level, as sentences."""
    validator = Draft202012Validator(schema)
    for place, part in _parts(schema, ""):
        for example in part.get("examples") or ():
            try:
                validator.evolve(schema={**part, "$defs": schema.get("$defs", {})}).validate(example)
            except SchemaViolation as error:
                yield f"the example {json.dumps(example)} at {place or 'the top'} does not fit its own schema: {error.message}"


def _parts(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas in a schema. The values of examples, defaults and the like are none."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from _parts(item, f"{place}/{number}")
    elif isinstance(schema, dict):
        yield place, schema
        for key in ("properties", "$defs", "patternProperties"):
            for name, part in (schema.get(key) or {}).items():
                yield from _parts(part, f"{place}/{key}/{name}")
        for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"):
            yield from _parts(schema.get(key), f"{place}/{key}")


def lost_on_the_way(payload: TypeAdapter[Any], example: Any) -> str | None:
    """What happens to a payload that is read, written and read again, as by ``ctx.submit(type, model)``; None if it stays the same."""
    try:
        read = payload.validate_json(json.dumps(example))
    except ValidationError as error:
        return f"the example {json.dumps(example)} is refused: {error.errors(include_url=False)[0]['msg']}"
    try:
        written = to_json(payload_json(read))
        again = payload.validate_json(written)
    except InvalidInput as error:
        return f"the payload {json.dumps(example)} can't be submitted again once it was read: {error}"
    except Exception as error:  # Pydantic raises many kinds, and a model's own code any
        return f"the payload {json.dumps(example)} can't be written and read again: {type(error).__name__}: {error}"
    if again != read:
        return f"the payload {json.dumps(example)} is another one after it was written and read again: {written.decode()}"
    return None
