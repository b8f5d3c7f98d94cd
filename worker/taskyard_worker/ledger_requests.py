"""What the engine asks the ledger for: each request travels in a shared commit, and its future gets the answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import Connection

from taskyard.records import Finished, NewTask

log = structlog.get_logger(__name__)

#: The patience of a request that must be written whatever happens.
FOREVER: Final = math.inf


@dataclass(eq=False, slots=True)
class Request:
    """Something to do in the next commit, and where its answer goes.

    A request that PostgreSQL refuses, without blaming its data, is tried again. ``patience`` is for how many seconds, while other requests
    are written: then its answer is the error. While nothing can be written, it is kept. With a patience of 0 the first error is its answer.
    """

    answer: asyncio.Future[Any]
    patience: float = field(default=FOREVER, kw_only=True)
    #: When it was refused first, on the monotonic clock.
    refused_at: float | None = field(default=None, init=False)


@dataclass(eq=False, slots=True)
class Claim(Request):
    """See lifecycle.claim."""

    queue: str
    lane: str
    ids: list[UUID]


@dataclass(eq=False, slots=True)
class Finish(Request):
    """See lifecycle.finish. ``children`` are submitted with the runs that succeeded, by id and fence."""

    finished: Sequence[Finished]
    children: Mapping[tuple[UUID, int], Sequence[NewTask]]


@dataclass(eq=False, slots=True)
class Call(Request):
    """Any other statement."""

    work: Callable[[Connection], Any]


def refuse(requests: Sequence[Request], error: Exception) -> None:
    """Answer requests with an error, in the loop that made them."""

    def answer() -> None:
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    in_loop(requests, answer)


def in_loop(requests: Sequence[Request], work: Callable[[], None]) -> None:
    """Call ``work`` in the one loop that all requests come from. If that is gone by now, nobody waits for it."""
    if requests:
        try:
            requests[0].answer.get_loop().call_soon_threadsafe(work)
        except RuntimeError:
            log.debug("ledger.loop_closed")
