"""The service's way to its database: every use of it ends in time.

A connection over which nothing comes any more looks like a slow statement, and a statement may take its time. So for whoever waits
too long, the database is asked over a fresh connection: does it answer, and is it at work for the one who waits? If not, the wait
ends, and the connection with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

import asyncpg
import structlog
from sqlalchemy import Connection
from sqlalchemy.event import listen
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from taskyard.database_errors import OutageLog, drop_useless, is_bad_data, outages_named
from taskyard.errors import Unavailable
from taskyard.retrying import retried_async
from taskyard.settings import DatabaseSettings
from taskyard.storable import from_json
from taskyard_api.connecting import Connector
from taskyard_api.write_record import WriteRecord

log = structlog.get_logger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

#: Seconds of silence after which the database is asked, and seconds that it gets for its answer. With what a request does besides,
#: their sum stays below 2 s.
PATIENCE = 1.0
TIME_TO_ANSWER = 0.6

# Idle for a while, it has answered and the answer is lost, or it has never got the question.
_AT_WORK = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND (state = 'active' OR state_change > clock_timestamp() - interval '0.5 s')"


class Database:
    """The engine of one event loop, and three ways to use it, which raise Unavailable when the database is away.

    Each repeats what PostgreSQL has undone (see :mod:`taskyard.retrying`), so what is run does nothing outside of the database.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._connector = Connector(settings)
        self.engine = _engine(settings, self._connector)
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._outages = OutageLog()
        self.writes = WriteRecord()
        self._open: WeakSet[Any] = WeakSet()
        self._idle: WeakSet[Any] = WeakSet()
        listen(self.engine.sync_engine, "connect", lambda connection, _: self._open.add(connection.driver_connection))
        listen(self.engine.sync_engine, "checkout", lambda connection, *_: self._idle.discard(connection.driver_connection))
        listen(self.engine.sync_engine, "checkin", self._on_checkin)

    async def close(self) -> None:
        """Let the database go. The polite end of each connection waits for an answer, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.engine.dispose()
        for driver in list(self._open):
            driver.terminate()

    def _on_checkin(self, connection: Any, _record: Any) -> None:
        if connection is not None:
            self._idle.add(connection.driver_connection)

    async def read(self, query: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of core's queries."""
        return await self._run(self.engine.connect, lambda connection: query(connection, *args, **kwargs))

    async def write(self, verb: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of core's verbs and commit. Where the commit fails, it may have happened all the same."""
        with self._writing():
            return await self._run(self.engine.begin, lambda connection: verb(connection, *args, **kwargs))

    async def single(self, statement: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one statement that commits itself: one round trip to the database, where a transaction is three."""
        with self._writing():
            return await self._run(self._single.connect, lambda connection: statement(connection, *args, **kwargs))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # What blames our data may be a fault of the schema: a trial tells.
            if isinstance(error, Unavailable) or is_bad_data(error):
                self.writes.failed()
            raise

    async def _run(self, connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]], work: Callable[[Connection], R]) -> R:
        async def attempt() -> R:
            with self.watched() as watch:
                async with connect() as connection:
                    watch.driver = (await connection.get_raw_connection()).driver_connection
                    return await connection.run_sync(work)

        with outages_named(noted=self._outages):
            return await retried_async(attempt)

    async def connect_apart(self) -> Any:
        """An asyncpg connection outside of the pool."""
        return await self._connector.connect("api-apart")

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Watch over a block that uses the engine. Raises Unavailable if the database was silent for too long."""
        watch = Watch(self._connector)
        try:
            yield watch
        except (Exception, asyncio.CancelledError) as error:
            if not watch.gave_up:
                raise
            # Those beside it are of its age and its way.
            for driver in list(self._idle):
                driver.terminate()
            if watch.cancelled and (task := asyncio.current_task()):
                task.uncancel()
            raise Unavailable("The database does not answer.") from error
        finally:
            watch.end()


class Watch:
    """Watches over one use of the database by the current task."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        #: The asyncpg connection that the task waits for, once it has one.
        self.driver: Any = None
        self._asking: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(PATIENCE, self._begin)
        self.gave_up = False
        self.cancelled = False

    def end(self) -> None:
        """The use has ended."""
        self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _begin(self) -> None:
        self._asking = self._loop.create_task(self._ask())

    async def _ask(self) -> None:
        if await self._is_served():
            self._timer = self._loop.call_later(PATIENCE, self._begin)
            return
        self.gave_up = True
        log.warning("database.silent", connected=self.driver is not None)
        if self.driver is not None:
            # Whatever waits for it raises now. A polite end would wait for an answer, too.
            self.driver.terminate()
        elif self._task is not None:
            self.cancelled = self._task.cancel()

    async def _is_served(self) -> bool:
        driver = self.driver
        try:
            async with asyncio.timeout(TIME_TO_ANSWER):
                asker = await self._connector.reach("api-apart")
                try:
                    return driver is None or await asker.fetchval(_AT_WORK, self._connector.pid_of(driver)) is not None
                finally:
                    asker.terminate()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False


def _engine(settings: DatabaseSettings, connector: Connector) -> AsyncEngine:
    """An engine for the REST service."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connector.connect("api"),
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout,
        json_deserializer=from_json,
    )
    listen(engine.sync_engine, "checkout", _drop_closed)
    listen(engine.sync_engine, "handle_error", drop_useless)
    return engine


def _drop_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """After a restart of the database, no request pays for a connection that died while it was idle. Costs no round trip."""
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError("the server closed an idle connection")
