"""One verb on all that match a filter: newest first, a batch and a commit at a time, and only so far in one request."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from fastapi import Response
from pydantic_core import to_json
from sqlalchemy import Row

from taskyard import cursors
from taskyard.errors import Unavailable

K = TypeVar("K")
#: What one request looks at, at most, and seconds after which it begins no further batch: most proxies wait for an answer for 30.
MOST = 10_000
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Steps(Generic[K]):
    """How an action goes: ``find`` a page of rows older than an id, ``move`` some of them and say how many have moved."""

    find: Callable[[K | None], Awaitable[Sequence[Row[Any]]]]
    move: Callable[[Sequence[Row[Any]]], Awaitable[int]]
    page: int
    batch: int


@dataclass(frozen=True, slots=True)
class Outcome(Generic[K]):
    """How many were found and moved. ``last`` is where the next request goes on; None: all are done."""

    matched: int
    changed: int
    last: K | None


async def act(steps: Steps[K], after: K | None) -> Outcome[K]:
    """Go on from the id ``after``, or begin.

    Raises:
        Unavailable: not one batch could be done. Later, what is done is the outcome.
    """
    until = time.monotonic() + SECONDS
    done = Outcome(0, 0, after)
    try:
        while rows := await steps.find(done.last):
            for start in range(0, len(rows), steps.batch):
                if done.matched and (done.matched >= MOST or time.monotonic() >= until):
                    return done
                batch = rows[start : start + steps.batch]
                done = Outcome(done.matched + len(batch), done.changed + await steps.move(batch), batch[-1].id)
            if len(rows) < steps.page:
                break
    except Unavailable:
        if not done.matched:
            raise
        return done
    return replace(done, last=None)


def answer(outcome: Outcome[Any], position: Callable[[Any], bytes], bound_to: Any, would: Mapping[tuple[str, str], int] | None = None) -> Response:
    """The outcome as JSON; with ``next_cursor`` if there may be more. ``would`` counts what a dry run would have changed, by old and new status."""
    counts = [{"status": old, "becomes": new, "count": count} for (old, new), count in sorted((would or {}).items())]
    told = {} if would is None else {"would_change": counts}
    more = {} if outcome.last is None else {"next_cursor": cursors.encode(position(outcome.last), bound_to)}
    return Response(to_json({"matched": outcome.matched, "changed": outcome.changed} | told | more), media_type="application/json")
