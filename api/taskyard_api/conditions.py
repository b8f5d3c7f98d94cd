"""Conditional requests (RFC 9110, 13): a task's ETag is its version."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header
from sqlalchemy import Connection, RowMapping

from taskyard import lifecycle
from taskyard.errors import InvalidInput

Verb = Callable[[Connection, str, UUID], RowMapping]

IfMatch = Annotated[list[str] | None, Header(include_in_schema=False)]
IfNoneMatch = Annotated[list[str] | None, Header(include_in_schema=False)]
# An entity-tag (RFC 9110, 8.8.3), and a comma-separated list of them.
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
# For the document, in ASCII: a header's other bytes are nobody's tags.
_TOLD = r'(W/)?"[!#-~]*"'


def _parameter(name: str, said: str, example: str) -> dict[str, Any]:
    """OpenAPI's parameter. Of several headers of one name, which are allowed as well, OpenAPI has no way to tell."""
    schema = {"type": "string", "pattern": rf"^(\*|{_TOLD}( *, *{_TOLD})*)$"}
    return {"name": name, "in": "header", "description": said, "schema": schema, "example": example}


IF_MATCH = _parameter("If-Match", "Only if the task's ETag is one of these; `*` is any.", "*")
IF_NONE_MATCH = _parameter("If-None-Match", "304 if the task's ETag is one of these; `*` is any.", '"0"')
_TAGS = re.compile(rf"[ \t]*{_TAG}(?:[ \t]*,[ \t]*{_TAG})*[ \t]*")


def etag(version: int) -> dict[str, str]:
    """The ETag header of a task."""
    return {"ETag": f'"{version}"'}


def is_known(version: int, given: list[str] | None) -> bool:
    """Does the client have this version already? Weak tags compare as strong ones here (RFC 9110, 13.1.2)."""
    tags = _tags("If-None-Match", given)
    return tags is not None and ("*" in tags or f'"{version}"' in {tag.removeprefix("W/") for tag in tags})


def only_if(given: list[str] | None, verb: Verb) -> Verb:
    """``verb`` on a condition, which is checked in its transaction. A weak tag matches nothing (RFC 9110, 13.1.1).

    Raises:
        InvalidInput: the header is not as expected.
        VersionConflict: by the verb, if the task has another version.
    """
    tags = _tags("If-Match", given)
    if tags is None or "*" in tags:
        return verb
    versions = [int(tag.strip('"')) for tag in tags if re.fullmatch(r'"[1-9][0-9]{0,8}"', tag)]

    def conditional(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
        lifecycle.expect_version(connection, namespace, task_id, versions)
        return verb(connection, namespace, task_id)

    return conditional


def _tags(header: str, given: list[str] | None) -> set[str] | None:
    if given is None:
        return None
    value = ",".join(given)
    if value.strip() == "*":
        return {"*"}
    if not _TAGS.fullmatch(value):
        raise InvalidInput(f"The header {header} is not as expected.", [(f"/{header}", 'expected ETags as they were sent, such as "3", or *')])
    return set(re.findall(_TAG, value))
