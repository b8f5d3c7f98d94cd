"""Quotas of a namespace at the door: asked for before a submission, and only where one is set.

The rate is exact over all web processes, for they share a row. Of live tasks a process counts all now and then, and lets in a share of what is
left before it counts again; so several may go beyond the quota together, by about what they let in at one moment.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pydantic_core import to_json

from taskyard import quotas
from taskyard.records import NewTask
from taskyard.settings import QuotaSettings
from taskyard_api.database import Database
from taskyard_api.errors import PayloadTooLarge, QuotaExceeded

#: What a process lets in before it counts again: this part of what is left, and for so many seconds at most.
SHARE, FRESH = 8, 1.0
#: Seconds after which whoever has too many live tasks may try again.
LIVE_AGAIN = 5.0
Headers = Mapping[str, str]


@dataclass(slots=True)
class _Live:
    """What a process knows of a namespace's live tasks."""

    counting: asyncio.Lock = field(default_factory=asyncio.Lock)
    room: int = 0
    until: float = 0.0
    under_way: int = 0


class Quotas:
    """The quotas of all namespaces, for one event loop. Answers headers (draft-ietf-httpapi-ratelimit-headers-10), or raises what is exceeded."""

    def __init__(self, settings: QuotaSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._live: dict[str, _Live] = {}
        self._refused: dict[str, tuple[int, float]] = {}

    @asynccontextmanager
    async def admitted(self, namespace: str, new: Sequence[NewTask], at: str) -> AsyncIterator[Headers]:
        """Around a submission of these tasks; ``at`` is the JSON pointer of the first, with ``{}`` for its number in a batch.

        Raises:
            PayloadTooLarge, QuotaExceeded: all of it is refused.
        """
        quota = self._settings.of(namespace)
        if quota.payload_bytes is not None:
            _check_sizes(new, quota.payload_bytes, at)
        headers: Headers = {}
        if quota.submissions_per_second is not None:
            headers = await self._take(namespace, quota.submissions_per_second, len(new))
        if quota.live_tasks is None:
            yield headers
            return
        live = self._live.setdefault(namespace, _Live())
        await self._let_in(namespace, live, quota.live_tasks, len(new), headers)
        try:
            yield headers
        finally:
            live.under_way -= len(new)

    async def _take(self, namespace: str, rate: float, count: int) -> Headers:
        refused, until = self._refused.get(namespace, (0, 0.0))
        if count >= refused > 0 and (wait := until - time.monotonic()) > 0:
            # The database has said when. Whoever asks all the time costs it nothing.
            taken = quotas.Taken(quotas.AHEAD, wait)
        else:
            taken = await self._database.single(quotas.take, namespace, rate, count)
        headers = _told(rate, taken)
        if taken.wait:
            self._refused[namespace] = (count, time.monotonic() + taken.wait)
            raise QuotaExceeded(f"The namespace {namespace!r} may submit {rate:g} tasks a second.", taken.wait, headers)
        return headers

    async def _let_in(self, namespace: str, live: _Live, limit: int, count: int, headers: Headers) -> None:
        # One after the other: who comes while it is counted finds room then, or none.
        async with live.counting:
            if live.room >= count and time.monotonic() < live.until:
                live.room -= count
            else:
                await self._count(namespace, live, limit, count, headers)
            live.under_way += count

    async def _count(self, namespace: str, live: _Live, limit: int, count: int, headers: Headers) -> None:
        # Those under way now may be counted twice, or be refused yet: at its edge, a quota is kept rather than used up.
        under_way = live.under_way
        known = await self._database.read(quotas.live, namespace, limit + 1)
        left = limit - known - under_way - count
        if left < 0:
            live.room = 0
            most = "" if count <= limit else f" It can never have the {count} of this request."
            raise QuotaExceeded(f"The namespace {namespace!r} may have {limit} tasks that have not ended.{most}", LIVE_AGAIN, headers)
        live.room, live.until = left // SHARE, time.monotonic() + FRESH


def _check_sizes(new: Sequence[NewTask], most: int, at: str) -> None:
    large = [(at.format(index), f"{size} bytes of JSON") for index, task in enumerate(new) if (size := len(to_json(task.payload))) > most]
    if large:
        raise PayloadTooLarge(most, large)


def _told(rate: float, taken: quotas.Taken) -> Headers:
    left = max(0, math.floor((quotas.AHEAD - taken.busy) * rate + 1e-6))
    reset = max(1, math.ceil(taken.wait or taken.busy))
    window = max(1, math.ceil(1 / rate))
    return {"RateLimit-Policy": f'"submissions";q={max(1, math.floor(rate * window))};w={window}', "RateLimit": f'"submissions";r={left};t={reset}'}
