"""``Client`` for programs that block, ``AsyncClient`` for those that await: the same calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import httpx2

from taskyard.client import profiles
from taskyard.client.bridge import Awaiting, Blocking, Caller, operation, run, streaming
from taskyard.client.core import Core, Id
from taskyard.client.exchange import DEFAULT_URL, Exchange, check_key, check_url, http_options
from taskyard.client.handles import AsyncHandle, Handle
from taskyard.client.retries import Retries
from taskyard.client.submissions import New, handler_of, new_tasks
from taskyard.client.wires import AsyncWire, BlockingWire
from taskyard.handlers import Handler
from taskyard.network import environment_checked
from taskyard.task_options import Options

P = TypeVar("P")
R = TypeVar("R")
#: Seconds that a call may take.
TIMEOUT = 30.0


class Calls(Caller):
    """What both clients can do."""

    _core: Core

    def _target(self) -> Core:
        return self._core

    check = operation(Core.check)
    get = operation(Core.get)
    wait = operation(Core.wait)
    place = operation(Core.place)
    page = operation(Core.page)
    list = streaming(Core.list)
    events = streaming(Core.events)
    logs = streaming(Core.logs)
    follow = streaming(Core.follow)
    watch = streaming(Core.watch)
    cancel = operation(Core.cancel)
    retry = operation(Core.retry)
    hold = operation(Core.hold)
    release = operation(Core.release)
    update = operation(Core.update)
    act = operation(Core.act)
    task_types = operation(Core.task_types)
    task_type = operation(Core.task_type)
    plugins = operation(Core.plugins)
    notifiers = operation(Core.notifiers)
    queues = operation(Core.queues)
    pause = operation(Core.pause)
    resume = operation(Core.resume)
    deliveries = streaming(Core.deliveries)
    redeliver = operation(Core.redeliver)
    redeliver_all = operation(Core.redeliver_all)
    call = operation(Core.call)
    close = operation(Core.close)

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._core.exchange.url


def _place(url: str | None, key: str | None, profile: str | None) -> tuple[str, str]:
    """Where to call, and with which key: what the caller says, else what the environment says. A program that names no profile reads none."""
    if profile is not None:
        place = profiles.choose(url, key, profile, profiles.read(os.environ), os.environ)
        return check_url(place.url), check_key(place.key)
    asked = check_url(url or os.environ.get("TASKYARD_URL") or DEFAULT_URL)
    return asked, check_key(os.environ.get("TASKYARD_KEY", "") if key is None else key)


class Client(Calls, Blocking):
    """A Taskyard, for programs that block. Use it as a context manager, or close it. Threads may share it.

    ``url`` and ``key`` default to ``TASKYARD_URL`` and ``TASKYARD_KEY``; ``profile`` is the name of one of the user's
    (:mod:`taskyard.client.profiles`); ``timeout`` is what a call may take, in seconds. ``transport`` is
    HTTPX's own, for proxies, certificates and tests. Its calls raise what :mod:`taskyard.client.errors` lists.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        profile: str | None = None,
        timeout: float = TIMEOUT,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        address, secret = _place(url, key, profile)
        with environment_checked():
            wire = BlockingWire(httpx2.Client(transport=transport, **http_options(address, secret, timeout)))
        self._core = Core(Exchange(wire, address, retries or Retries()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @overload
    def submit(self, type: Handler[P, R], payload: P, *, idempotency_key: str | None = ..., **options: Unpack[Options]) -> Handle[R]: ...
    @overload
    def submit(self, type: str, payload: Any = ..., *, idempotency_key: str | None = ..., **options: Unpack[Options]) -> Handle[Any]: ...
    def submit(self, type: Handler[Any, Any] | str, payload: Any = None, *, idempotency_key: str | None = None, **options: Unpack[Options]) -> Handle[Any]:
        """Submit a task. It is safe to be cut off: see :meth:`taskyard.client.core.Core.submit`."""
        new = _new(type, payload, options)
        made = run(self._core.submit(new, idempotency_key))
        return Handle(self._core, made.tasks[0], new.handler, replayed=made.replayed, warning=made.warning)

    @overload
    def batch(self, new: Iterable[New[R]], *, idempotency_key: str | None = ...) -> tuple[Handle[R], ...]: ...
    @overload
    def batch(self, new: Iterable[New[Any] | Mapping[str, Any]], *, idempotency_key: str | None = ...) -> tuple[Handle[Any], ...]: ...
    def batch(self, new: Iterable[New[Any] | Mapping[str, Any]], *, idempotency_key: str | None = None) -> tuple[Handle[Any], ...]:
        """Submit up to 1,000 tasks, all or none. They are answered in the order that they were given in.

        ``new`` may be any iterable, a generator too: it is read to its end before anything is sent. Its items are :class:`New`, or dicts with
        the fields of ``POST /tasks``. Raises InvalidInput: an item is neither.
        """
        tasks = new_tasks(new)
        made = run(self._core.batch(tasks, idempotency_key))
        return tuple(Handle(self._core, task, one.handler, replayed=made.replayed, warning=made.warning) for task, one in zip(made.tasks, tasks, strict=True))

    @overload
    def handle(self, task_id: Id, type: Handler[Any, R]) -> Handle[R]: ...
    @overload
    def handle(self, task_id: Id, type: str | None = ...) -> Handle[Any]: ...
    def handle(self, task_id: Id, type: Handler[Any, Any] | str | None = None) -> Handle[Any]:
        """A handle of a task that was submitted before, elsewhere perhaps. A handler as ``type`` types its result; a name leaves it JSON."""
        handler = handler_of(type)
        return Handle(self._core, run(self._core.get(task_id)), handler)


class AsyncClient(Calls, Awaiting):
    """A Taskyard, for programs that await. Use it as an asynchronous context manager, or close it. All else is as with :class:`Client`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        profile: str | None = None,
        timeout: float = TIMEOUT,
        retries: Retries | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        address, secret = _place(url, key, profile)
        with environment_checked():
            wire = AsyncWire(httpx2.AsyncClient(transport=transport, **http_options(address, secret, timeout)))
        self._core = Core(Exchange(wire, address, retries or Retries()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @overload
    async def submit(self, type: Handler[P, R], payload: P, *, idempotency_key: str | None = ..., **options: Unpack[Options]) -> AsyncHandle[R]: ...
    @overload
    async def submit(self, type: str, payload: Any = ..., *, idempotency_key: str | None = ..., **options: Unpack[Options]) -> AsyncHandle[Any]: ...
    async def submit(
        self, type: Handler[Any, Any] | str, payload: Any = None, *, idempotency_key: str | None = None, **options: Unpack[Options]
    ) -> AsyncHandle[Any]:
        """As :meth:`Client.submit`."""
        new = _new(type, payload, options)
        made = await self._core.submit(new, idempotency_key)
        return AsyncHandle(self._core, made.tasks[0], new.handler, replayed=made.replayed, warning=made.warning)

    @overload
    async def batch(self, new: Iterable[New[R]], *, idempotency_key: str | None = ...) -> tuple[AsyncHandle[R], ...]: ...
    @overload
    async def batch(self, new: Iterable[New[Any] | Mapping[str, Any]], *, idempotency_key: str | None = ...) -> tuple[AsyncHandle[Any], ...]: ...
    async def batch(self, new: Iterable[New[Any] | Mapping[str, Any]], *, idempotency_key: str | None = None) -> tuple[AsyncHandle[Any], ...]:
        """As :meth:`Client.batch`."""
        tasks = new_tasks(new)
        made = await self._core.batch(tasks, idempotency_key)
        return tuple(
            AsyncHandle(self._core, task, one.handler, replayed=made.replayed, warning=made.warning) for task, one in zip(made.tasks, tasks, strict=True)
        )

    @overload
    async def handle(self, task_id: Id, type: Handler[Any, R]) -> AsyncHandle[R]: ...
    @overload
    async def handle(self, task_id: Id, type: str | None = ...) -> AsyncHandle[Any]: ...
    async def handle(self, task_id: Id, type: Handler[Any, Any] | str | None = None) -> AsyncHandle[Any]:
        """As :meth:`Client.handle`."""
        handler = handler_of(type)
        return AsyncHandle(self._core, await self._core.get(task_id), handler)


def _new(type: Handler[Any, R] | str, payload: Any, options: Options) -> New[R]:
    return New(type, payload, **options)
