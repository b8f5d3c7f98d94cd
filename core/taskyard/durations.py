"""Spans of time as people write them: 90d, 12h, 30m."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhdw])", re.ASCII)
LONGEST = timedelta(days=36525)


def parse(text: str) -> timedelta:
    """A number and a unit (s, m, h, d or w), such as ``90d``.

    Raises:
        ValueError: it is none, or longer than a hundred years.
    """
    matched = _SPAN.fullmatch(text.strip().lower())
    if matched is None:
        raise ValueError(f"expected a number and a unit (s, m, h, d or w), such as 90d, and not {text!r}")
    span = timedelta(**{_UNITS[matched[2]]: 1})
    number = float(matched[1])
    # Compared before it is multiplied: a timedelta has an end.
    if number > LONGEST / span:
        raise ValueError(f"{text} is longer than a hundred years")
    return number * span


def seconds(value: Any) -> Any:
    """A setting's value in seconds, where it is written with a unit; anything else is left as it is."""
    return parse(value).total_seconds() if isinstance(value, str) and value.strip()[-1:].isalpha() else value
