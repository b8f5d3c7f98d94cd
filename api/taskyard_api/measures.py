"""What a web process measures of itself, and how it brings its counts to the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog
from sqlalchemy import QueuePool
from starlette.routing import BaseRoute, Route

from taskyard import metrics
from taskyard.database_errors import driver_words
from taskyard.gauges import Samples
from taskyard.metrics import INFINITY, Key, Metric, Tally
from taskyard_api.database import Database
from taskyard_api.live import Feed
from taskyard_api.waits import Waits

log = structlog.get_logger(__name__)

_TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

UP = Metric("taskyard_database_up", "gauge", "1 if the database answered this scrape.")
POOL = Metric("taskyard_database_pool_connections", "gauge", "Connections of this web process to the database.", ("state",))
POOL_SIZE = Metric("taskyard_database_pool_size", "gauge", "Most connections that this web process may have: `database.pool_size`.")
LAG = Metric("taskyard_event_loop_lag_seconds", "histogram", "How late this web process's event loop is, looked at twice a second.", (), _TIMES)
REQUESTS = Metric("taskyard_http_request_seconds", "histogram", "Requests that this web process has answered.", ("method", "route", "status"), _TIMES)
STREAMS = Metric("taskyard_streams_open", "gauge", "Live event streams that this web process serves.")
WAITING = Metric("taskyard_requests_waiting", "gauge", "Requests of this web process that wait for a task's end (`Prefer: wait`).")

OWN = (UP, POOL, POOL_SIZE, LAG, REQUESTS, STREAMS, WAITING)
LOOK_EVERY = 0.5
#: Answers that alerts are about.
_ALARMING = ("500", "503")
#: Seconds that the last flush of a process may take.
LAST_FLUSH = 2.0


def alarming_requests(routes: Iterable[BaseRoute], prefix: str) -> dict[Key, float]:
    """Zero for each answer of a route that alerts are about: Prometheus sees no increase in a series that is born at 1."""
    pairs = [(method, prefix + route.path_format) for route in routes if isinstance(route, Route) for method in route.methods or ()]
    return {(REQUESTS.bucket_name, (method, path, status, INFINITY)): 0.0 for method, path in pairs for status in _ALARMING}


class Measures:
    """Made inside the event loop that it watches. ``own`` holds what is of this process alone and is never flushed."""

    def __init__(self, database: Database, shared: Tally, own: Tally, feed: Feed, waits: Waits) -> None:
        self.shared = shared
        self._database = database
        self._own = own
        self._feed = feed
        self._waits = waits
        self._tasks = [asyncio.create_task(work) for work in (self._watch_loop(), self._flush_now_and_then())]

    async def close(self) -> None:
        """Flush what is left, if the database takes it soon."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_FLUSH):
                await self.flush()
        except Exception as error:
            log.warning("metrics.not_flushed", error=driver_words(error))

    def samples(self) -> Samples:
        """This process at this moment."""
        samples = Samples(self._own.peek())
        samples.add(POOL, self._pool.checkedout(), "in_use")
        samples.add(POOL, self._pool.checkedin(), "idle")
        samples.add(POOL_SIZE, self._pool.size())
        samples.add(STREAMS, self._feed.open)
        samples.add(WAITING, self._waits.count())
        return samples

    def pool_is_used_up(self) -> bool:
        """Are all connections in use?"""
        return self._pool.checkedout() >= self._pool.size()

    @property
    def _pool(self) -> QueuePool:
        pool = self._database.engine.pool
        assert isinstance(pool, QueuePool)
        return pool

    async def _watch_loop(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_EVERY)
            self._own.observe(LAG, time.monotonic() - before - LOOK_EVERY)

    async def _flush_now_and_then(self) -> None:
        while True:
            if self.shared.is_due(time.monotonic()):
                try:
                    await self.flush()
                except Exception as error:
                    log.debug("metrics.not_flushed", error=driver_words(error))
            await asyncio.sleep(metrics.FLUSH_EVERY)

    async def flush(self) -> None:
        """Bring the counts to the database now."""
        self.shared.flushing(time.monotonic())
        await self._database.read(metrics.flush, self.shared)
