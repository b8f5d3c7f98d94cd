"""Questions to a model of nested settings: its keys, their environment names, which are lists, what is wrong with one."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from taskyard.masking import mask_url
from taskyard.spelling import did_you_mean

PREFIX = "TASKYARD_"
Key = tuple[str, ...]


def environment_name(key: Key) -> str:
    """The variable that sets a key: ``TASKYARD_<SECTION>__<NAME>``."""
    return PREFIX + "__".join(part.upper().replace("-", "_") for part in key)


def environment_names(model: type[BaseModel]) -> dict[str, Key]:
    """Every variable that sets a key of this model."""
    return {environment_name(key): key for key in keys_of(model)}


def keys_of(model: type[BaseModel]) -> list[Key]:
    """The keys of each section, and those at the top that are no section."""
    keys: list[Key] = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        keys += [(name, inner) for inner in section.model_fields] if section else [(name,)]
    return keys


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The annotation itself, if it is a model."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def annotation_of(model: type[BaseModel], key: Iterable[str]) -> Any:
    """The annotation at a key (list positions are passed over), or None where the model has none."""
    annotation: Any = model
    for part in key:
        if part.isdigit():
            annotation = next(iter(typing.get_args(annotation)), None)
        elif (section := section_of(annotation)) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
        else:
            return None
    return annotation


def is_list(annotation: Any) -> bool:
    """Is this a list or tuple, or an optional one?"""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(is_list(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) in (tuple, list)


def is_table(annotation: Any) -> bool:
    """Is this a table whose keys are anybody's?"""
    return typing.get_origin(annotation) is dict


def sentences(model: type[BaseModel], error: ValidationError) -> list[tuple[Key, str]]:
    """Where and what each problem is. An unknown key is told the nearest known one; rejected values are left out."""
    found = []
    for problem in error.errors(include_input=False, include_url=False):
        key = tuple(str(part) for part in problem["loc"])
        # A validator of somebody's model may have put the value into its message.
        found.append((key, mask_url(_sentence(model, key, problem["type"], problem["msg"]))))
    return found


def _sentence(model: type[BaseModel], key: Key, kind: str, message: str) -> str:
    if kind == "tuple_type":
        return "expected a list"
    if kind != "extra_forbidden":
        message = message.removeprefix("Value error, ")
        # Not the first letter of "URL".
        return message[:1].lower() + message[1:] if message[1:2].islower() else message
    parent = section_of(annotation_of(model, key[:-1]))
    return f"no such setting.{did_you_mean(key[-1], parent.model_fields if parent else ())}"
