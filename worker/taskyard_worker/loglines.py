"""What handlers log, on its way out of their process: a logger that keeps each line, and an outbox that never makes a handler wait.

Lines wait in the child, and once more in the worker (see logbook.py). Where one can't keep up, a run's newest lines push out its oldest, as
they would in the database; they are counted. So a handler that logs in a tight loop costs a bounded time and memory.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import structlog
from pydantic_core import to_json

from taskyard import logs
from taskyard.logline import LEVELS, LIMIT
from taskyard.storable import find_unstorable, storable_text

#: Seconds between two messages with lines of one child.
PAUSE = 0.2
#: Bytes of a run's lines that leave the child at once while it runs.
FLOW = 128 * 1024
#: Bytes of lines that wait in a child at most.
PER_CHILD = 8 * 1024 * 1024
#: Bytes that the engine has not taken yet, above which an event loop sends no more lines.
FULL = 1024 * 1024
#: Characters of a message or a field, and of all fields as JSON.
MAX_TEXT, MAX_FIELDS = 8_000, 16_000
_NOT_FIELDS = frozenset({"event", "level", "logger", "timestamp"})

Run = TypeVar("Run", bound=Hashable)
Message = dict[str, Any]
#: A job's number, and with it the place of a task in its batch.
Key = int | tuple[int, int]


def logger(name: str, fields: dict[str, Any], keep: Callable[[str], None]) -> Any:
    """A logger like all others, whose lines are kept too: those that the configured level lets through."""

    def kept(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        keep(line(event, fields))
        return event

    return logs.task_logger(name, fields, kept)


class Late:
    """A logger that is made when it is first used: most handlers of quick tasks say nothing, and making one takes as long as such a task."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if name in Late.__slots__:
            # A copy that has none of its own yet.
            raise AttributeError(name)
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)


def line(event: MutableMapping[str, Any], bound: dict[str, Any]) -> str:
    """A log line as JSON, without what its run has ``bound``: masked as in the worker's log, and as PostgreSQL takes it. Never raises."""
    level = event.get("level")
    told = {"time": event.get("timestamp") or datetime.now(UTC).isoformat(), "level": level if level in LEVELS else "info"}
    try:
        said = logs.safe(structlog.processors.format_exc_info(None, "", dict(event)))
        told |= {"message": storable_text(said.get("event", ""), MAX_TEXT), "fields": _fields(said, bound)}
    except Exception as error:
        # A value whose repr raises, or that holds itself.
        told |= {"message": f"(this line can't be told: {type(error).__name__})", "fields": {}}
    return to_json(told).decode()


def _fields(said: MutableMapping[str, Any], bound: dict[str, Any]) -> dict[str, Any]:
    fields = {}
    for name, value in said.items():
        if name in _NOT_FIELDS or (name in bound and bound[name] == value):
            continue
        # Of a trace, its end tells most.
        cut = value[-MAX_TEXT:] if name == "exception" and isinstance(value, str) else value
        plain = not isinstance(cut, str) and find_unstorable(cut) is None
        fields[storable_text(name, 200)] = cut if plain else storable_text(cut, MAX_TEXT)
    text = to_json(fields).decode()
    return fields if len(text) <= MAX_FIELDS else {"cut": text[: MAX_FIELDS // 2]}


class _Ring:
    """One run's lines that wait."""

    __slots__ = ("dropped", "lines", "size")

    def __init__(self) -> None:
        self.lines: deque[str] = deque()
        self.size = 0
        self.dropped = 0


class Rings(Generic[Run]):
    """Lines that wait, of some runs: at most as many of one as are kept with its task, and ``most`` bytes of all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._size = 0
        self._rings: dict[Run, _Ring] = {}

    def __len__(self) -> int:
        return len(self._rings)

    def runs(self) -> list[Run]:
        """Of whom lines wait, or were dropped; who waits longest comes first."""
        return list(self._rings)

    def add(self, run: Run, lines: Iterable[str], dropped: int = 0) -> None:
        """Let lines wait; where there is no room, a run's own oldest go."""
        ring = self._rings.setdefault(run, _Ring())
        ring.dropped += dropped
        for line in lines:
            ring.lines.append(line)
            self._grow(ring, len(line))
            while ring.lines and (ring.size > LIMIT or self._size > self.most):
                self._grow(ring, -len(ring.lines.popleft()))
                ring.dropped += 1

    def take(self, run: Run, most: int | None = None) -> tuple[list[str], int]:
        """A run's oldest lines, of ``most`` bytes or slightly more, and how many were dropped."""
        ring = self._rings.pop(run, None)
        if ring is None:
            return [], 0
        taken, size = [], 0
        while ring.lines and (most is None or size < most):
            taken.append(ring.lines.popleft())
            size += len(taken[-1])
        self._grow(ring, -size)
        dropped, ring.dropped = ring.dropped, 0
        if ring.lines:
            self._rings[run] = ring
        return taken, dropped

    def _grow(self, ring: _Ring, by: int) -> None:
        ring.size += by
        self._size += by


class Outbox:
    """A child's lines that wait for the engine, by the keys of its jobs. ``wake`` is called when there is a first one, from any thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        #: Held by a thread from when it takes lines until it has sent them: they must not come after their run's report.
        self.underway = threading.Lock()
        self._rings: Rings[Key] = Rings(PER_CHILD)
        self._woken = False
        self._closed = False
        os.register_at_fork(after_in_child=self._close)

    def add(self, key: Key, line: str) -> None:
        """Let a line wait. Never blocks."""
        if self._closed:
            return
        with self._lock:
            self._rings.add(key, [line])
            woken, self._woken = self._woken, True
        if not woken:
            self._wake()

    def take(self) -> tuple[list[Message], bool]:
        """Some of what waits, as messages; and is there more? Then come again."""
        with self._lock:
            messages = [self._message(key, FLOW) for key in self._rings.runs()]
            self._woken = bool(self._rings)
            return messages, self._woken

    def last(self, key: int) -> list[Message]:
        """All that waits of a run that is over, or of all of a batch: goes before its report."""
        with self.underway, self._lock:
            return [self._message(one) for one in self._rings.runs() if key in (one, one[0] if isinstance(one, tuple) else one)]

    def _message(self, key: Key, most: int | None = None) -> Message:
        lines, dropped = self._rings.take(key, most)
        job = {"key": key[0], "item": key[1]} if isinstance(key, tuple) else {"key": key}
        return {**job, "lines": lines, "dropped": dropped}

    def _close(self) -> None:
        """This is a copy that a handler has forked: another thread may have held the lock, and nobody empties the copy."""
        self._closed = True
        self._lock = threading.Lock()


def emptied_by_threads(send: Callable[[Message], None]) -> Outbox:
    """An outbox for a process whose main thread is its handlers': a thread sends what there is, and ends."""

    def work() -> None:
        more = True
        while more:
            time.sleep(PAUSE)
            with outbox.underway:
                messages, more = outbox.take()
                for message in messages:
                    send(message)

    outbox = Outbox(lambda: threading.Thread(target=work, name="log lines", daemon=True).start())
    return outbox


def emptied_by_loop(send: Callable[[Message], None], writer: asyncio.StreamWriter) -> Outbox:
    """An outbox for an event loop, whose handlers may log from threads too."""
    loop = asyncio.get_running_loop()

    def work() -> None:
        more = True
        if writer.transport.get_write_buffer_size() <= FULL:
            messages, more = outbox.take()
            for message in messages:
                send(message)
        if more:
            loop.call_later(PAUSE, work)

    def wake() -> None:
        # The loop may be closed by now: then nobody reads either.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.call_later, PAUSE, work)

    outbox = Outbox(wake)
    return outbox
