"""What the handlers of a child process share: their plugins' lifespans, started before the first handler that needs them.

Not when the child is forked: a process that never runs a plugin's tasks makes no connection for them and loads no model, and a lifespan that
fails holds up nobody else's tasks. While one starts, the engine is told, and the timeout of the task that waits for it begins afterwards. One
that does not start parks the tasks of its plugin that need it, and is tried again with the first of them that comes after
``dispatch.park_delay``.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import structlog

from taskyard.errors import LifespanFailed
from taskyard.handlers import Handler
from taskyard.lifespans import Lifespan, Values, as_async, bound, bound_each_time, needed
from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard.timelimit import TimeIsUp, limited
from taskyard_worker.calls import Call

log = structlog.get_logger(__name__)

#: Sends a message to the engine.
Send = Callable[[dict[str, Any]], None]


class _Starts:
    """Which lifespans did not start, and until when they are not tried again."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.seconds = settings.worker.lifespan_timeout
        self._pause = settings.dispatch.park_delay
        self._send = send
        self._failures: dict[Lifespan, tuple[float, LifespanFailed]] = {}

    def refuse_failed(self, lifespan: Lifespan) -> None:
        """Raise why a lifespan did not start, if that was a moment ago."""
        if found := self._failures.get(lifespan):
            until, why = found
            if time.monotonic() < until:
                raise LifespanFailed(why.plugin, why.lifespan, why.reason)

    def failed(self, lifespan: Lifespan, error: BaseException) -> LifespanFailed:
        """Note and tell that it did not start."""
        why = lifespan.failed(error)
        self._failures[lifespan] = time.monotonic() + self._pause, why
        consequence = f"tasks that need it are parked; it is tried again after {self._pause:g} s"
        log.error("lifespan.failed", plugin=why.plugin, lifespan=why.lifespan, reason=why.reason, consequence=consequence, exc_info=error)
        self._send({"plugin": why.plugin, "problem": str(why)})
        return why

    def late(self) -> TimeoutError:
        """What is said of one that takes too long."""
        return TimeoutError(f"it had not started after {self.seconds:g} s (worker.lifespan_timeout)")

    def started(self, lifespan: Lifespan, began: float) -> None:
        """Note and tell that it has started."""
        if self._failures.pop(lifespan, None):
            self._send({"plugin": lifespan.plugin, "problem": None})
        log.info("lifespan.started", plugin=lifespan.plugin, lifespan=lifespan.name, seconds=round(time.monotonic() - began, 3))


class SyncResources:
    """The resources of a child that runs sync handlers, in its main thread."""

    def __init__(self, settings: Settings, registry: Registry, send: Send) -> None:
        self._registry = registry
        self._send = send
        self._starts = _Starts(settings, send)
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._values: dict[Lifespan, Values] = {}
        self._stack = ExitStack()
        # What a lifespan logs, now or in a thread of its own later, is not of the task that happened to need it first.
        self._context = contextvars.copy_context()
        #: Did the last call of :meth:`bind` start something?
        self.took_time = False

    def bind(self, call: Call, key: int) -> None:
        """Fill in the resources of a call's handler.

        Raises:
            LifespanFailed: one of them can't be made now.
        """
        self.took_time = False
        handler = self._handlers.get(call.handler.type)
        call.handler = self._made(call, key) if handler is None else handler

    def _made(self, call: Call, key: int) -> Handler[Any, Any]:
        handler, config = call.handler, self._registry.config_of(call.handler)
        lifespans = needed(handler, self._registry.lifespans_of(handler))
        if handler.is_async and lifespans:
            # It was sync when its task was stored. Its event loop is this call's alone, so what it needs of one is made and ended by the call.
            return bound_each_time(handler, lifespans, config)
        began = time.monotonic()
        values: dict[Any, Any] = {}
        for one in lifespans:
            values |= self._values[one] if one in self._values else self._start(one, config, key)
        if self.took_time:
            call.begin_later(time.monotonic() - began)
            self._send({"key": key, "begins": 0})
        made = self._handlers[handler.type] = bound(handler, values)
        return made

    def _start(self, lifespan: Lifespan, config: Any, key: int) -> Values:
        self._starts.refuse_failed(lifespan)
        self.took_time, began = True, time.monotonic()
        self._send({"key": key, "begins": self._starts.seconds})
        try:
            with limited(self._starts.seconds):
                values = self._context.run(lambda: lifespan.values(self._stack.enter_context(lifespan.open(config))))
        except TimeIsUp as up:
            raise self._starts.failed(lifespan, TimeoutError(f"{self._starts.late()}; it stood at {up.place}")) from up
        except BaseException as error:
            raise self._starts.failed(lifespan, error) from error
        self._values[lifespan] = values
        self._starts.started(lifespan, began)
        return values

    def close(self) -> None:
        """End what was started, the last one first. Raises nothing: the process ends anyhow."""
        try:
            self._context.run(self._stack.close)
        except BaseException:
            log.exception("lifespan.end_failed")


class AsyncResources:
    """The resources of a child with an event loop. Each lifespan has a task of its own, which enters and exits it: so it may hold a task group."""

    def __init__(self, settings: Settings, registry: Registry, send: Send) -> None:
        self._registry = registry
        self._send = send
        self._starts = _Starts(settings, send)
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._lives: dict[Lifespan, tuple[asyncio.Task[None], asyncio.Future[Values]]] = {}
        self._ending = asyncio.Event()
        self._context = contextvars.copy_context()

    def are_bound(self, call: Call) -> bool:
        """Fill in the resources of a call's handler, if they are all there."""
        handler = self._handlers.get(call.handler.type)
        if handler is None:
            return False
        call.handler = handler
        return True

    async def bind(self, call: Call, key: int) -> None:
        """Fill in the resources of a call's handler, and make them first.

        Raises:
            LifespanFailed: one of them can't be made now.
        """
        handler, config, began = call.handler, self._registry.config_of(call.handler), time.monotonic()
        lifespans = needed(handler, self._registry.lifespans_of(handler))
        values: dict[Any, Any] = {}
        for one in lifespans:
            values |= await self._values(one, config, key)
        if lifespans:
            call.begin_later(time.monotonic() - began)
            self._send({"key": key, "begins": 0})
        call.handler = self._handlers[handler.type] = bound(handler, values)

    async def _values(self, lifespan: Lifespan, config: Any, key: int) -> Values:
        if lifespan not in self._lives:
            self._starts.refuse_failed(lifespan)
            started: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
            # All who waited may have been cancelled: then nobody asks why it did not start, and asyncio complains.
            started.add_done_callback(lambda done: done.exception())
            life = asyncio.get_running_loop().create_task(self._live(lifespan, config, started), context=self._context.copy())
            life.add_done_callback(partial(self._over, lifespan))
            self._lives[lifespan] = life, started
        _, started = self._lives[lifespan]
        if not started.done():
            self._send({"key": key, "begins": self._starts.seconds})
        # A run that is cancelled while it waits leaves the start to the others.
        return await asyncio.shield(started)

    async def _live(self, lifespan: Lifespan, config: Any, started: asyncio.Future[Values]) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._starts.seconds) as limit, as_async(lifespan, config) as yielded:
                values = lifespan.values(yielded)
                limit.reschedule(None)
                self._starts.started(lifespan, began)
                started.set_result(values)
                await self._ending.wait()
        except BaseException as error:
            if started.done():
                log.error("lifespan.end_failed", plugin=lifespan.plugin, lifespan=lifespan.name, exc_info=error)
                return
            late = isinstance(error, TimeoutError) and limit.expired()
            started.set_exception(self._starts.failed(lifespan, self._starts.late() if late else error))

    def _over(self, lifespan: Lifespan, _: asyncio.Task[None]) -> None:
        """It did not start, or has ended: what it gave is of no more use, and is made anew when it is needed again."""
        self._lives.pop(lifespan, None)
        self._handlers = {type_: handler for type_, handler in self._handlers.items() if handler.plugin != lifespan.plugin}

    def is_starting(self, task: asyncio.Task[Any] | None) -> bool:
        """Is this the task of a lifespan? One that blocks the event loop is interrupted like a handler."""
        return any(life is task for life, _ in self._lives.values())

    async def close(self) -> None:
        """End what was started. The engine bounds the time that this takes."""
        self._ending.set()
        if lives := [life for life, started in self._lives.values() if started.done()]:
            await asyncio.wait(lives)
