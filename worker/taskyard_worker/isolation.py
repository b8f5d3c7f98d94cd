"""What a handler has changed of its process, put back before the next task: its tasks share a process, and must not notice.

A part of the process is read, compared with how it was when the child began, and set again. What can't be set again (open files, threads,
imported modules, a seeded ``random``) stays.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the interpreter's own, without a stub: signal makes enumerations of all that it finds
import asyncio
import contextvars
import gc
import locale
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

import structlog

from taskyard.log_setup import LogSetup
from taskyard_worker.runs import Job

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Signals that handlers handle. None of them is left to the next task.
_SIGNALS = tuple(
    int(number)
    for number in (
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM),
        *(signal.SIGCHLD, signal.SIGVTALRM, signal.SIGPROF),
    )
)
_HOOKS = ("stdin", "stdout", "stderr", "excepthook", "unraisablehook", "displayhook")


class Part(NamedTuple):
    """Something of a process that a handler may change: how it is read, and how it is set to what was read before."""

    name: str
    read: Callable[[], Any]
    set: Callable[[Any], object]


def _signal_handlers() -> tuple[Any, ...]:
    return tuple(map(_signal.getsignal, _SIGNALS))


def _set_signal_handlers(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        # None: not set by Python.
        if handler is not None:
            signal.signal(number, handler)


def _stop_timer(_: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _set_environment(saved: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - saved.keys():
        del os.environb[name]
    for name, value in saved.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _set_time_zone(_: Any) -> None:
    """Called when the environment is as it was, which names the zone."""
    time.tzset()


def _error_filters() -> list[Any]:
    """Warnings that are raised as errors. Other filters are added by libraries that a task imports, and stay."""
    return [found for found in warnings.filters if found[0] == "error"]


def _set_error_filters(saved: list[Any]) -> None:
    kept = [found for found in warnings.filters if found[0] != "error" or found in saved]
    warnings.resetwarnings()
    warnings.filters[:] = kept  # type: ignore[index]  # a list, which typeshed keeps to itself


def _set_collection(is_on: bool) -> None:
    gc.enable() if is_on else gc.disable()


def _folder() -> str | None:
    with suppress(OSError):
        return os.getcwd()  # noqa: PTH109  # a text, compared after each task
    return None


def _set_folder(folder: str | None) -> None:
    with suppress(OSError):
        if folder is not None:
            os.chdir(folder)


def _umask() -> int:
    """There is no other way to read it."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def _hooks() -> tuple[Any, ...]:
    return (*(getattr(sys, name) for name in _HOOKS), threading.excepthook)


def _set_hooks(hooks: tuple[Any, ...]) -> None:
    for name, hook in zip(_HOOKS, hooks, strict=False):
        setattr(sys, name, hook)
    threading.excepthook = hooks[-1]


def _policy() -> Any:
    return asyncio.events._event_loop_policy  # type: ignore[attr-defined]  # get_event_loop_policy() makes one


def _set_policy(policy: Any) -> None:
    asyncio.events._event_loop_policy = policy  # type: ignore[attr-defined]  # the public way is deprecated from Python 3.14 on


def _set_path(path: list[str]) -> None:
    sys.path[:] = path


#: A running loop that is left behind fails the next task's ``asyncio.run``; a set policy has another task's loop. Any task may use them.
LOOPS = (
    Part("the running event loop", asyncio._get_running_loop, asyncio._set_running_loop),
    Part("the event loop policy", _policy, _set_policy),
)
PROCESS = (
    Part("signal handlers", _signal_handlers, _set_signal_handlers),
    Part("blocked signals", lambda: _signal.pthread_sigmask(signal.SIG_BLOCK, ()), lambda saved: signal.pthread_sigmask(signal.SIG_SETMASK, saved)),
    Part("the alarm", lambda: _signal.getitimer(signal.ITIMER_REAL)[0] > 0, _stop_timer),
    Part("the environment", lambda: dict(os.environb._data), _set_environment),  # type: ignore[attr-defined]  # a copy by way of its methods takes 20 times as long
    Part("the time zone", lambda: (time.timezone, time.altzone, time.tzname), _set_time_zone),
    Part("the current folder", _folder, _set_folder),
    Part("the umask", _umask, os.umask),
    Part("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda saved: locale.setlocale(locale.LC_ALL, saved)),
    Part("standard streams and hooks", _hooks, _set_hooks),
    Part("sys.path", lambda: list(sys.path), _set_path),
    Part("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Part("warnings that are errors", _error_filters, _set_error_filters),
    Part("garbage collection", gc.isenabled, _set_collection),
    Part("the default timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
)
#: Changed by whoever uses asyncio as it is meant to be used.
_SILENT = ("the event loop policy",)


def _kind(job: Job) -> tuple[str, str]:
    return job["type"], (job["jobs"][0] if job["kind"] == "batch" else job)["namespace"]


class Threads(ThreadPoolExecutor):
    """An event loop's threads for ``run_in_executor``: each call has the context of the task that made it, and leaves nothing in the thread's own."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As a pool of threads does."""
        return super().submit(partial(contextvars.copy_context().run, fn), *args, **kwargs)


class Isolation:
    """How the process was when its child began."""

    def __init__(self) -> None:
        self._logging = LogSetup()
        self._saved = {part.name: part.read() for part in (*LOOPS, *PROCESS)}
        self._told: set[tuple[str, str]] = set()

    def accept(self) -> None:
        """Called after plugins' lifespans have begun: what they have changed of the process is as they want it. Logging is not theirs."""
        self._saved |= {part.name: part.read() for part in PROCESS}

    def between(self, job: Job, following: Job | None) -> None:
        """Called between two tasks of a sync child; ``following`` is the one that waits already.

        Quick tasks of one type and namespace that come together share what is not of an event loop: reading all takes as long as some of them do.
        """
        parts: tuple[Part, ...] = LOOPS
        changed: list[str] = []
        if following is None or _kind(following) != _kind(job):
            parts = (*LOOPS, *PROCESS)
            changed = self._logging.put_back()
        self._tell(job["type"], [*changed, *self._put_back(parts)])

    def after_all(self, type_: str) -> None:
        """Called in an event loop that is idle, after its last task."""
        self._tell(type_, [*self._logging.put_back(), *self._put_back(PROCESS)])

    def after_some(self, type_: str) -> None:
        """Called now and then in an event loop that still runs tasks. What one of them may rely on stays."""
        self._tell(type_, self._logging.put_back())

    def _put_back(self, parts: tuple[Part, ...]) -> list[str]:
        changed = []
        for part in parts:
            saved = self._saved[part.name]
            if part.read() != saved:
                with suppress(Exception):
                    part.set(saved)
                changed.append(part.name)
        return [name for name in changed if name not in _SILENT]

    def _tell(self, type_: str, changed: list[str]) -> None:
        new = [name for name in changed if (type_, name) not in self._told]
        if new:
            self._told.update((type_, name) for name in new)
            log.warning("handler.changed_its_process", type=type_, what=new, consequence="it is as it was before, for the tasks that come after")
