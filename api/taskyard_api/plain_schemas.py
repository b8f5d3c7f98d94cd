"""JSON Schemas in words that client generators understand. What they mean stays the same; tests/api/test_generated_*.py run the generators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
#: Longest default that a description shows, in characters of JSON.
SHOWN_DEFAULT = 80
_ONE = ("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "dependentSchemas", "patternProperties", "properties")


def parts(schema: Schema) -> Iterator[tuple[Any, str | int]]:
    """The schemas directly inside a schema: each as the container that has it, and its place there."""
    for word in _ONE:
        if isinstance(schema.get(word), dict):
            yield schema, word
    for word in _SEVERAL:
        for index in range(len(schema.get(word, ()))):
            yield schema[word], index
    for word in _NAMED:
        for name in schema.get(word, ()):
            yield schema[word], name


def each(schema: Schema, visit: Callable[[Schema], None]) -> None:
    """Call ``visit`` with every schema inside ``schema``, the innermost first, and with ``schema`` itself."""
    for container, place in parts(schema):
        if isinstance(container[place], dict):
            each(container[place], visit)
    visit(schema)


def plain(schema: Schema) -> None:
    """Rewrite a schema in place.

    - A default is told in the description: openapi-typescript takes a property with a default for a required one, and `null` for a value.
    - A title is left out of all but the outermost: generators name classes by titles, and "Text" is no name for one.
    - Null alone is a constant: openapi-generator has a type "null" in unions only.
    - What may not be is said by `if` and `then`: openapi-generator takes the properties inside a `not` for those of the schema.
    """
    title = schema.get("title")
    each(schema, _plain)
    if isinstance(title, str):
        schema["title"] = title


def _plain(schema: Schema) -> None:
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if "default" in schema:
        _tell_default(schema, schema.pop("default"))
    if schema.get("not") and "if" not in schema:
        schema |= {"if": schema.pop("not"), "then": {"not": {}}}
    for container, place in parts(schema):
        if isinstance(place, str) and isinstance(part := container[place], dict) and part.get("type") == "null":
            del part["type"]
            part["const"] = None


def _tell_default(schema: Schema, default: Any) -> None:
    shown = json.dumps(default)
    if default is None or len(shown) > SHOWN_DEFAULT:
        return
    said = schema.get("description", "").rstrip()
    schema["description"] = f"{said}{'' if said.endswith(('.', '!', '?')) or not said else '.'} Default: `{shown}`.".strip()


def or_null(schema: Schema) -> Schema:
    """``schema``, or null."""
    if not schema or schema in (NULL, {"const": None}) or NULL in schema.get("anyOf", ()):
        return schema
    return {"anyOf": [schema, NULL]}


def without_null(schema: Schema) -> Schema:
    """``schema`` for a place where nothing can be null, such as a query parameter."""
    options = [option for option in schema.get("anyOf", ()) if option != NULL]
    if len(options) == len(schema.get("anyOf", ())):
        return schema
    rest = {word: value for word, value in schema.items() if word != "anyOf"}
    return options[0] | rest if len(options) == 1 else rest | {"anyOf": options}
