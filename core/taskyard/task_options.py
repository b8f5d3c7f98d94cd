"""How a task is to be run: the options that every way to submit one takes, as types and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict

from pydantic import BaseModel

#: A time; one without a zone is local. As text, it is RFC 3339.
Time = datetime | str


class _Notifier(TypedDict):
    notifier: str


class Subscription(_Notifier, total=False):
    """Whom to tell of a task: a notifier that the operator allows, its options, and which events (the four ends, where nothing is said)."""

    options: Mapping[str, Any]
    events: Sequence[str]


class Options(TypedDict, total=False):
    """How a task is to be run: the fields of ``POST /tasks`` beside type and payload. What is left out, or None, is the type's to say."""

    priority: int | None
    queue: str | None
    run_at: Time | None
    delay: float | timedelta | None
    expires_at: Time | None
    timeout: float | timedelta | None
    max_attempts: int | None
    tags: Iterable[str] | None
    metadata: Mapping[str, Any] | None
    unique_key: str | None
    notify: Sequence[Subscription] | None


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options, filters or changes as JSON and queries have them: times in RFC 3339, durations in seconds."""
    return {name: _plain(value) for name, value in given.items()}


def in_process(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as :func:`taskyard.submission.prepare` takes them. Times stay as they are: a server's zone says nothing, so one without a zone is refused."""
    return {name: value if isinstance(value, datetime) else _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | BaseModel):
        # Sets and generators too: a generator can be read once, and a call may be sent twice.
        return list(value)
    return value
