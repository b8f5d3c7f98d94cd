"""Live streams of events (server-sent events): one reader of the database a process, and any number of listeners.

A listener first reads what it missed from the database, at its own pace, and then hears what the reader brings. There is no wait
between the last look at where the reader stands and the first event heard, so nothing is left out and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import Connection, RowMapping

from taskyard import feed, ids
from taskyard.database_errors import driver_words
from taskyard.errors import TaskyardError, Unavailable
from taskyard.ids import PLAIN, PublicIds
from taskyard.tables import TERMINAL
from taskyard_api import sse
from taskyard_api.database import Database
from taskyard_api.errors import RateLimited

log = structlog.get_logger(__name__)

#: Seconds between two looks for new events, while somebody listens; and between two while events are on their way.
TICK, SOON = 0.1, 0.01
#: Seconds of silence after which a comment is sent, so that nobody in between takes the connection for dead.
HEARTBEAT = 15.0
#: Events that wait for a listener at most.
BEHIND = 2_000
PAGE = 500
#: Ids that one look at the history goes over at most, of which all may be other namespaces'; and such looks at once.
STRETCH, CATCHING_UP = 20_000, 2
#: Seconds after which it is said that somebody's open transaction holds up all streams.
HELD_UP = 10.0
LAST = 2**63 - 1
ENDS = frozenset(f"task.{status}" for status in TERMINAL)

Wanted = Callable[[RowMapping], bool]


class TooSlow(TaskyardError):
    """The stream was read too slowly. Come back with Last-Event-ID: nothing is lost."""


class Told:
    """An event on its way to listeners: written out once for all of them."""

    __slots__ = ("_ids", "_message", "row")

    def __init__(self, row: RowMapping, ids: PublicIds = PLAIN) -> None:
        self.row = row
        self._ids = ids
        self._message: bytes | None = None

    @property
    def message(self) -> bytes:
        """It, as it is sent."""
        if self._message is None:
            self._message = sse.message(self._ids.hide(self.row["id"]), feed.event_of(self.row, self._ids))
        return self._message


class Listener:
    """One open stream: which events it wants, and those that wait for it. That of one task hears its log lines too."""

    def __init__(self, wanted: Wanted, task_id: UUID | None = None) -> None:
        self.wanted = wanted
        self.task_id = task_id
        self.ended = False
        self.last: int | None = None
        """The last event that it has read by itself; None while it does."""
        self._told: deque[Told] = deque()
        self._too_slow = False
        self._news = asyncio.Event()

    def hear(self, told: Sequence[Told]) -> None:
        """New events, which all listeners of a process are told of."""
        if self.last is None or self._too_slow:
            return
        self._told.extend(one for one in told if one.row["id"] > self.last and self.wanted(one.row))
        if len(self._told) > BEHIND:
            self._told.clear()
            self._too_slow = True
        if self._told:
            self._news.set()

    def end(self) -> None:
        """Let the stream end."""
        self.ended = True
        self._news.set()

    async def heard(self, seconds: float) -> list[Told]:
        """What is new, waiting for so long at most. Raises TooSlow if too much has come since the last call."""
        if self._too_slow:
            raise TooSlow
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        told = list(self._told)
        self._told.clear()
        return told


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stream is to tell: of a namespace, or of one task; above the id ``after``, or from now on.

    ``check`` is called every :data:`HEARTBEAT` seconds. What it raises ends the stream, with a last message that says why. Without ``named``
    messages have no names.
    """

    wanted: Wanted
    check: Callable[[], Awaitable[object]]
    after: int | None = None
    namespace: str | None = None
    task_id: UUID | None = None
    named: bool = True


class Feed:
    """Reads every event once for all listeners of this process, while there are any. ``most`` streams are open at once."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most
        #: Streams that are open.
        self.open = 0
        self._listeners: set[Listener] = set()
        self._reader: asyncio.Task[None] | None = None
        self._pending: feed.Horizon | None = None
        self._settled = asyncio.Event()
        self._position = 0
        """Up to here, all events were told."""
        self._closed = False
        self._catching_up = asyncio.Semaphore(CATCHING_UP)
        self._waited_since: float | None = None
        self._ids = PLAIN

    async def close(self) -> None:
        """End all streams, for good: their clients come back elsewhere, and miss nothing."""
        self._closed = True
        self._settled.set()
        for listener in list(self._listeners):
            listener.end()
        if self._reader:
            self._reader.cancel()
            await asyncio.wait({self._reader})

    def admit(self) -> None:
        """Raises RateLimited if as many streams are open as this process serves, Unavailable if it is about to stop."""
        if self._closed:
            raise Unavailable("This process is about to stop.")
        if self.open >= self._most:
            raise RateLimited(f"This process serves {self._most} streams at once, and all are taken.", sse.RETRY)

    async def stream(self, asked: Asked) -> AsyncIterator[bytes]:
        """Server-sent events above the id ``after``, or from now on; those of one task until it has ended."""
        listener = Listener(asked.wanted, asked.task_id)
        self.open += 1
        self._listeners.add(listener)
        try:
            self._read()
            while not await self._begun():
                yield sse.HEARTBEAT
            await self._learn_ids()
            last = self._position if asked.after is None else asked.after
            # Who has read this misses nothing that is done from now on.
            yield sse.OPENING
            checked = time.monotonic()
            async for told in self._told(listener, last, asked):
                if time.monotonic() - checked >= HEARTBEAT:
                    await asked.check()
                    checked = time.monotonic()
                messages = (one.message if asked.named else sse.unnamed(one.message) for one in told)
                for part in sse.parts(messages) if told else [sse.HEARTBEAT]:
                    yield part
                if asked.task_id is not None and told and await self._is_end(told[-1].row, asked.task_id):
                    return
        except TaskyardError as error:
            yield sse.failure(error)
        finally:
            self._listeners.discard(listener)
            self.open -= 1

    async def _told(self, listener: Listener, last: int, asked: Asked) -> AsyncIterator[list[Told]]:
        """What to send, some at a time; nothing at all is a heartbeat."""
        # Where it ends, nothing has been told that was not read: there is no wait between the last look at the position and `listener.last`.
        silent_since = time.monotonic()
        while last < self._position:
            upto = min(self._position, last + STRETCH) if asked.task_id is None else self._position
            async with self._catching_up:
                rows = await self._events(last, upto, asked.task_id, asked.namespace)
            last = rows[-1]["id"] if len(rows) == PAGE else upto
            told = [Told(row, self._ids) for row in rows if listener.wanted(row)]
            if told or time.monotonic() - silent_since >= HEARTBEAT:
                yield told
                silent_since = time.monotonic()
        listener.last = last
        while not listener.ended:
            yield await listener.heard(HEARTBEAT)

    async def _learn_ids(self) -> None:
        """Once numbers are hidden they stay so; before, each stream that begins asks."""
        if self._ids.secret is None:
            self._ids = await self._database.read(ids.of)

    async def _begun(self) -> bool:
        """Does the reader know where it stands? It may wait for its database."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT):
                await self._settled.wait()
        return self._settled.is_set()

    async def _events(self, after: int, upto: int, task_id: UUID | None = None, namespace: str | None = None) -> Sequence[RowMapping]:
        return await self._database.read(feed.events, after, upto, PAGE, task_id, namespace)

    async def _is_end(self, row: RowMapping, task_id: UUID) -> bool:
        """Is this a task's last event? One that a person has retried since lives on."""
        if row["event"] not in ENDS or row["status"] not in TERMINAL:
            return False
        return not await self._database.read(feed.events, row["id"], LAST, 1, task_id)

    # --- the reader ---

    def _read(self) -> None:
        if self._reader is None or self._reader.done():
            self._settled.clear()
            self._pending = None
            # It is for many requests: none of their ids belongs in its log lines.
            self._reader = asyncio.create_task(self._keep_reading(), context=Context())

    async def _keep_reading(self) -> None:
        while self._listeners:
            pause = TICK
            try:
                pause = await self._look_and_tell()
            except Unavailable as error:
                log.info("feed.waits", error=driver_words(error))
            except Exception:
                log.exception("feed.failed")
            await asyncio.sleep(pause)

    async def _look_and_tell(self) -> float:
        """Tell of what is settled; seconds until the next look."""
        upto = await self._database.read(self._look)
        if upto is None:
            self._say_if_held_up()
            return SOON
        self._waited_since = None
        if not self._settled.is_set():
            # Nobody has heard anything yet: it begins here.
            self._position = upto
            self._settled.set()
        quiet = self._position == upto
        while self._position < upto:
            rows = await self._events_and_lines(self._position, upto)
            told = [Told(row, self._ids) for row in rows]
            # Together, without a wait: who reads by itself goes on from here.
            self._position = rows[-1]["id"] if len(rows) == PAGE else upto
            for listener in self._listeners:
                listener.hear(told)
        return TICK if quiet else SOON

    async def _events_and_lines(self, after: int, upto: int) -> Sequence[RowMapping]:
        """All events, and the log lines of the tasks whose streams are open: also of those that were opened while these were read."""
        rows = await self._events(after, upto)
        read: set[UUID] = set()
        while new := {listener.task_id for listener in self._listeners if listener.task_id} - read:
            lines = await self._database.read(feed.lines, after, upto, PAGE, new)
            rows = feed.merged(rows, lines, PAGE)
            read |= new
        return rows

    def _say_if_held_up(self) -> None:
        now = time.monotonic()
        self._waited_since = self._waited_since or now
        if now - self._waited_since > HELD_UP:
            self._waited_since = now
            log.warning("feed.held_up", writers=sorted(self._pending.writers) if self._pending else [])

    def _look(self, connection: Connection) -> int | None:
        """The id up to which all is settled now; None while somebody may still write below what was drawn."""
        if self._pending is None:
            if self._settled.is_set() and feed.drawn(connection) == self._position:
                return self._position
            self._pending = feed.horizon(connection)
            left = self._pending.writers
        else:
            left = self._pending.writers & feed.writers(connection)
        if left:
            return None
        upto, self._pending = self._pending.last, None
        return upto
