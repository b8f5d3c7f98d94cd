"""What every door checks in the same way: instants, and validation errors told as pointer and sentence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from taskyard.masking import mask_url
from taskyard.spelling import LONGEST, did_you_mean
from taskyard.storable import escape_pointer

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
#: A day short of what Python and PostgreSQL drivers can represent, so that no time zone pushes a value over the edge.
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
MAX_PROBLEMS = 20


def parse_instant(value: Any) -> datetime:
    """A time with its offset (RFC 3339, section 5.6), in UTC. Python code may pass an aware datetime.

    Raises:
        PydanticCustomError: it is not one, or it lies outside 1970-01-01 to 9999-12-30.
    """
    expected = PydanticCustomError("instant", "expected an RFC 3339 time with its offset, such as 2030-01-31T12:00:00Z")
    if isinstance(value, str):
        if not _RFC3339.fullmatch(value):
            raise expected
        try:
            value = datetime.fromisoformat(value.upper())
        except ValueError as error:
            raise PydanticCustomError("instant", "no such time: {reason}", {"reason": str(error)}) from None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise expected
    # Compared before it is converted: year 1 or 9999 with an offset would overflow.
    if not EARLIEST <= value <= LATEST:
        raise PydanticCustomError("instant", "expected a time from 1970-01-01 to 9999-12-30")
    return value.astimezone(UTC)


Instant = Annotated[datetime, BeforeValidator(parse_instant), WithJsonSchema({"type": "string", "format": "date-time"})]


def unknown_names(names: Iterable[str], known: Collection[str], what: str) -> list[tuple[str, str]]:
    """Those of ``names`` that are not known, as (JSON pointer, sentence) pairs: the first :data:`MAX_PROBLEMS`, each cut to 100 characters."""
    unknown = islice((name for name in names if name not in known), MAX_PROBLEMS)
    return [(f"/{escape_pointer(name[:LONGEST])}", f"unknown {what}.{did_you_mean(name, known)}") for name in unknown]


def problems_of(error: ValidationError, sent: Any, known: Iterable[str] = (), prefix: str = "") -> list[tuple[str, str]]:
    """A validation error as (JSON pointer, sentence) pairs, at most 20. Rejected values are left out: they may be secrets.

    ``sent`` is the value that was validated, ``known`` the names that its top level may have, for hints.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [_problem(detail, sent, known, prefix) for detail in found[:MAX_PROBLEMS]]


def _problem(detail: ErrorDetails, sent: Any, known: Iterable[str], prefix: str) -> tuple[str, str]:
    where = prefix + _pointer(detail, sent)
    if detail["type"] == "extra_forbidden":
        hint = did_you_mean(str(detail["loc"][-1]), known) if len(detail["loc"]) == 1 else ""
        return where, f"unknown name.{hint}"
    # A validator of somebody's model may have put the value into its message.
    return where, mask_url(detail["msg"])


def _pointer(detail: ErrorDetails, sent: Any) -> str:
    """The part of Pydantic's location that is in the input: it adds the labels of unions and functions."""
    pointer, here = "", sent
    for index, token in enumerate(detail["loc"]):
        last = index == len(detail["loc"]) - 1
        in_object = isinstance(here, dict) and token in here
        in_array = isinstance(here, list | tuple) and isinstance(token, int) and token < len(here)
        if in_object or in_array:
            here = here[token]
        elif not (last and detail["type"] == "missing"):
            continue
        pointer += "/" + escape_pointer(str(token))
    return pointer
