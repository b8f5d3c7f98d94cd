"""A child process: runs sync handlers one at a time, or async handlers many at once in an event loop, or notifiers likewise.

It is told what to run over a socket and reports back over it; it knows no database and no broker. SIGTERM interrupts what
runs at that moment, and SIGKILL is the engine's last word.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the interpreter's own, without a stub
import asyncio
import contextvars
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from taskyard import failpoints, functions
from taskyard.errors import Interrupted, Interruption
from taskyard.handlers import Retry
from taskyard.interruptions import Interruptible, interruption
from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard.storable import storable_text
from taskyard_worker import lease, loglines, runs, wire
from taskyard_worker.calls import Call, call_of
from taskyard_worker.forks import Origin, forget_main
from taskyard_worker.isolation import Isolation, Threads
from taskyard_worker.loop_watch import LoopWatch
from taskyard_worker.observers import Observers
from taskyard_worker.outcomes import unstarted
from taskyard_worker.resources import AsyncResources, SyncResources
from taskyard_worker.runs import Job, Report

#: A notifier's tries are counted and spaced by the settings, not by its code.
ALWAYS = Retry()
#: Seconds between two looks at what the runs of a busy event loop have changed of their process.
ISOLATE_EVERY = 0.1


def main(channel: socket.socket, *, is_async: bool, settings: Settings, registry: Registry) -> None:
    """Be a child until the socket closes. Called in a fresh fork."""
    # A session of its own, so that whatever a handler starts can be killed with it, and Ctrl-C passes it by.
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.dup2(descriptor, 0)
    forget_main()
    if is_async:
        # Not the loop of a policy that some plugin has set: see forks.py.
        selector = selectors.DefaultSelector()
        loop = asyncio.SelectorEventLoop(selector)
        _run_until_ended(loop, AsyncChild(channel, loop, selector, settings, registry).serve())
    else:
        SyncChild(channel, settings, registry).serve()


def _run_until_ended(loop: asyncio.AbstractEventLoop, serving: Coroutine[Any, Any, None]) -> None:
    """Run an event loop until ``serving`` ends. A handler that stops it, or whose own tasks raise SystemExit, ends nobody else's run."""
    asyncio.set_event_loop(loop)
    task = loop.create_task(serving)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt, Interrupted):
            # Whatever else comes out of it (its files were closed, say) would come again.
            runs.log.exception("async.raised", consequence="the event loop goes on")
    task.result()


def not_ours() -> Report:
    """The report of a job that others may have by now."""
    return unstarted("the worker was not sure that it was still its own")


def said(key: int, fraction: float | None, message: str | None, item: int | None) -> dict[str, Any]:
    """How far a job is, or one task of a batch, as a message."""
    told: dict[str, Any] = {"fraction": fraction, "message": message}
    return {"key": key, "progress": told if item is None else told | {"item": item}}


class SyncChild:
    """Runs sync handlers one after the other in the main thread; a second thread listens.

    Each report is sent before the next job begins: so of the jobs of a child that died, only the first without a report can have
    begun.
    """

    def __init__(self, channel: socket.socket, settings: Settings, registry: Registry) -> None:
        self._channel = channel
        self._settings = settings
        self._registry = registry
        self._jobs: deque[Job] = deque()
        self._more = threading.Condition()
        self._job: Job | None = None
        self._call: Call | None = None
        self._key = 0
        self._cancelled = 0
        #: The job that is to be interrupted, and why. Its main thread has not raised it yet.
        self._pending: tuple[int, Interruption] | None = None
        self._interruptible = False
        self._sending = threading.Lock()
        #: Its main thread is in the middle of saying something.
        self._saying = False
        self._lines = loglines.emptied_by_threads(self._send)
        self._origin = Origin(channel, self._on_term)
        self._resources = SyncResources(settings, registry, self._send)
        self._ending = False

    def serve(self) -> None:
        """Run jobs until the engine says the end or closes the socket, or one was interrupted: what that was in the middle of is unknown."""
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        outcome, term = "", self._on_term
        signal.signal(signal.SIGTERM, term)
        self._isolation, context = Isolation(), contextvars.copy_context()
        while outcome != "interrupted":
            job = self._next()
            if job is None:
                self._resources.close()
                return
            # A handler may have changed the signal's disposition. (signal.getsignal makes an enumeration's member of what it finds, and
            # that takes longer than many a task.)
            if _signal.getsignal(signal.SIGTERM) is not term:
                signal.signal(signal.SIGTERM, term)
            began = time.perf_counter()
            report = context.copy().run(self._run, job)
            if not self._resources.took_time:
                report["seconds"] = time.perf_counter() - began
            following = self._following()
            for message in [*self._lines.last(job["key"]), {"key": job["key"], "report": report}]:
                self._send(message)
            outcome = report["outcome"]
            self._isolation.between(job, following)

    def _following(self) -> Job | None:
        with self._more:
            return self._jobs[0] if self._jobs else None

    def _next(self) -> Job | None:
        """The next job; None if there is none left, and the engine has said that this is the end."""
        with self._more:
            while not self._jobs:
                if self._ending:
                    return None
                self._more.wait()
            job = self._jobs.popleft()
            self._key, self._job, self._call = job["key"], job, None
            return job

    def _listen(self) -> None:
        while (message := wire.receive(self._channel)) is not None:
            if "run" in message:
                with self._more:
                    self._jobs.extend(message["run"])
                    self._more.notify()
            elif "item" in message:
                self._cancel_item(message["cancel"], message["item"])
            elif "cancel" in message:
                self._cancel(message["cancel"])
            elif "give_back" in message:
                self._give_back(lambda _: True)
            elif "end" in message:
                with self._more:
                    self._ending = True
                    self._more.notify()
            else:
                self._interrupt(message["interrupt"], message["reason"])
        # The worker is gone: whatever runs here writes to nobody.
        os.killpg(0, signal.SIGKILL)

    def _interrupt(self, key: int, reason: Interruption) -> None:
        """Raise in the handler that works on this job, if it still does."""
        if key == self._key:
            self._pending = key, reason
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _cancel(self, key: int) -> None:
        if self._give_back(lambda job: job["key"] == key) or key != self._key:
            return
        self._cancelled = key
        if self._call is not None:
            self._call.cancel()

    def _cancel_item(self, key: int, item: int) -> None:
        """Ask for the end of one task of a batch, whether its call runs or has not begun."""
        with self._more:
            for job in [*self._jobs, *([self._job] if self._job else [])]:
                if job["key"] == key:
                    job["jobs"][item]["cancelled"] = True
        if key == self._key and self._call is not None:
            self._call.cancel(item)

    def _give_back(self, wanted: Callable[[Job], bool]) -> bool:
        """Report jobs that have not begun, and never begin them. Was there one?"""
        with self._more:
            given = [job for job in self._jobs if wanted(job)]
            self._jobs = deque(job for job in self._jobs if job not in given)
        for job in given:
            self._send({"key": job["key"], "report": unstarted("it had to wait for a slow task")})
        return bool(given)

    def _run(self, job: Job) -> Report:
        report: Report = {}
        self._call = call = call_of(job, self._registry, partial(self.progress, job["key"]), self._keep)
        if self._cancelled == self._key:
            call.cancel()
        structlog.contextvars.bind_contextvars(**runs.log_fields(job))
        with runs.outcomes(report, call.handler.retry, call.cancelled):
            arguments = call.arguments()
            if arguments is not None:
                self._resources.bind(call, self._key)
                if self._resources.took_time:
                    self._isolation.accept()
            # The last thing before the handler: whoever is frozen in between starts what may be another's by now.
            if lease.is_over(job):
                return not_ours()
            call.settle(report, self._value(call, arguments), self._settings)
        call.conclude(report)
        return report

    def _value(self, call: Call, arguments: tuple[Any, ...] | None) -> Any:
        if arguments is None:
            return None
        timer = self._soft_timer()
        try:
            self._interruptible = True
            # One that came while the payload was read.
            self._raise_pending()
            value = self._origin.call(functions.call, call.handler.function, *arguments)
        finally:
            self._interruptible = False
            if timer is not None:
                timer.cancel()
        failpoints.hit("handler.returned")
        return value

    def _soft_timer(self) -> threading.Timer | None:
        """Interrupts the handler once, if it works for too long; None if it may."""
        if self._job is None or "soft_timeout" not in self._job:
            return None
        timer = threading.Timer(self._job["soft_timeout"], self._interrupt, (self._key, "soft-timeout"))
        timer.daemon = True
        timer.start()
        return timer

    def _on_term(self, *_: object) -> None:
        if not self._saying:
            self._raise_pending()

    def _raise_pending(self) -> None:
        """Interrupt the handler, if it is to be. The job that was meant may have ended meanwhile."""
        if self._pending is None or not self._interruptible:
            return
        (key, reason), self._pending = self._pending, None
        if key == self._key and self._job is not None:
            raise interruption(reason, self._job.get("soft_timeout"))

    def progress(self, key: int, fraction: float | None, message: str | None, item: int | None = None) -> None:
        """Report progress of a job, as :class:`taskyard_worker.calls.Progress`. A thread that has outlived its task reports nothing."""
        if key == self._key:
            self._say(partial(self._send, said(key, fraction, message, item)))

    def _keep(self, key: loglines.Key, line: str) -> None:
        if self._key == (key[0] if isinstance(key, tuple) else key):
            self._say(partial(self._lines.add, key, line))

    def _say(self, say: Callable[[], None]) -> None:
        """Half a message would garble all that follow: an interrupt that comes meanwhile is raised when it is out."""
        if threading.current_thread() is not threading.main_thread():
            say()
            return
        self._saying = True
        try:
            say()
        finally:
            self._saying = False
        self._raise_pending()

    def _send(self, message: dict[str, Any]) -> None:
        if self._origin.is_copy:
            return
        with self._sending, suppress(ConnectionError):
            self._channel.sendall(wire.pack(message))


class AsyncChild:
    """Runs many at once in one event loop: async handlers, or (in a child of their own) notifiers and observers."""

    def __init__(
        self, channel: socket.socket, loop: asyncio.AbstractEventLoop, selector: selectors.BaseSelector, settings: Settings, registry: Registry
    ) -> None:
        self._channel = channel
        self._loop = loop
        self._settings = settings
        self._registry = registry
        self._running: dict[int, tuple[asyncio.Task[Report], Call | None]] = {}
        self._handlers: dict[int, Interruptible] = {}
        # A thread for each delivery that may be on its way at once. One that hangs is told of: the engine replaces this child.
        self._threads = ThreadPoolExecutor(settings.deliveries.concurrency, thread_name_prefix="notifier")
        self._observers = Observers(registry)
        self._watching = False
        self._unsent: list[bytes] = []
        self._isolated_at = 0.0
        self._origin = Origin(channel, self._on_term, loop, selector)
        self._resources = AsyncResources(settings, registry, self._send)

    async def serve(self) -> None:
        """Run jobs until the engine says the end or closes the socket."""
        signal.signal(signal.SIGTERM, self._on_term)
        reader, self._writer = await asyncio.open_connection(sock=self._channel)
        self._lines = loglines.emptied_by_loop(self._send, self._writer)
        self._loop.set_default_executor(Threads())
        self._isolation = Isolation()
        LoopWatch(self._loop, self._settings.worker.block_warning, self._whose, self._tell_of_block).start()
        while (message := await wire.read(reader)) is not None:
            if "run" in message:
                for job in message["run"]:
                    self._start(job)
            elif "cancel" in message:
                self._cancel(message["cancel"], message.get("item"), message.get("reason", "cancel"))
            elif "ping" in message:
                self._send({"pong": message["ping"]})
            elif "end" in message:
                await self._resources.close()
                break
            elif "event" in message:
                self._observers.tell(message["event"])
                if not self._watching:
                    self._watching = True
                    self._watch_observers()
        os.killpg(0, signal.SIGKILL)

    def _send(self, message: dict[str, Any]) -> None:
        """Send a message at the end of this turn of the loop: what many runs report at once goes in one write."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(wire.pack(message))

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._writer.write(b"".join(unsent))

    def _start(self, job: Job) -> None:
        key = job["key"]
        call = None if job["kind"] == "delivery" else call_of(job, self._registry, partial(self._say, key), self._keep)
        task = self._loop.create_task(self._run(job, call), name=f"{job.get('type') or job['route']} {job.get('id', '')}")
        self._running[key] = task, call
        task.add_done_callback(partial(self._ended, key))

    def _say(self, key: int, fraction: float | None, message: str | None, item: int | None = None) -> None:
        """Report progress, as :class:`taskyard_worker.calls.Progress`; from any thread of the handler's."""
        if self._origin.is_copy:
            return
        told = said(key, fraction, message, item)
        if threading.current_thread() is threading.main_thread():
            self._send_of(key, told)
        else:
            self._loop.call_soon_threadsafe(self._send_of, key, told)

    def _send_of(self, key: int, told: dict[str, Any]) -> None:
        """Send what a run has said. A thread or coroutine that has outlived its task says nothing."""
        if key in self._running:
            self._send(told)

    def _keep(self, key: loglines.Key, line: str) -> None:
        if (key[0] if isinstance(key, tuple) else key) in self._running:
            self._lines.add(key, line)

    def _ended(self, key: int, task: asyncio.Task[Report]) -> None:
        _, call = self._running.pop(key)
        if task.cancelled():
            # Before its first step.
            report: Report = {"outcome": "cancelled"}
        elif error := task.exception():
            report = runs.reported(error, call.handler.retry if call else ALWAYS)
        else:
            report = task.result()
        for message in [*self._lines.last(key), {"key": key, "report": report}]:
            self._send(message)
        self._isolate(task.get_name().partition(" ")[0])

    def _whose(self, task: asyncio.Task[Any]) -> dict[str, str]:
        """The fields of a run's warning; empty, if it is a task of asyncio's that is none of the runs. Called in another thread."""
        if not any(running is task for running, _ in list(self._running.values())):
            return {}
        type_, _, id_ = task.get_name().partition(" ")
        return {"type": type_, "task_id": id_}

    def _tell_of_block(self, type_: str, seconds: float) -> None:
        self._send({"blocked": seconds, "type": type_})

    def _isolate(self, type_: str) -> None:
        now = self._loop.time()
        if not self._running:
            self._isolation.after_all(type_)
        elif now - self._isolated_at >= ISOLATE_EVERY:
            self._isolated_at = now
            self._isolation.after_some(type_)

    def _cancel(self, key: int, item: int | None, reason: Interruption) -> None:
        """Cancel a run, and again for as long as it swallows it; of a batch, one task is only told."""
        if key not in self._running:
            return
        call = self._running[key][1]
        if call is not None:
            call.cancel(item)
        if item is not None:
            return
        self._interrupt(key, reason)
        asyncio.get_running_loop().call_later(0.5, self._cancel, key, None, reason)

    def _interrupt(self, key: int, reason: Interruption, soft_timeout: float | None = None) -> None:
        task, _ = self._running[key]
        if key in self._handlers:
            self._handlers[key].interrupt(task, reason, soft_timeout)
        else:
            task.cancel()

    async def _run(self, job: Job, call: Call | None) -> Report:
        report: Report = {}
        # The coroutine's own context: what it logs, prints or warns of has these.
        structlog.contextvars.bind_contextvars(**runs.log_fields(job))
        with runs.outcomes(report, call.handler.retry if call else ALWAYS, call.cancelled if call else lambda: False):
            if call is None:
                report.update(await self._origin.wait_for(self._deliver(job)))
            else:
                arguments = call.arguments()
                if arguments is not None and not self._resources.are_bound(call):
                    await self._resources.bind(call, job["key"])
                    self._isolation.accept()
                if lease.is_over(job):
                    return not_ours()
                call.settle(report, await self._value(job, call, arguments), self._settings)
        if call is not None:
            call.conclude(report)
        return report

    async def _value(self, job: Job, call: Call, arguments: tuple[Any, ...] | None) -> Any:
        if arguments is None:
            return None
        key, function = job["key"], call.handler.function
        # One that is not async is there if the task was stored by a version whose handler was.
        made = function(*arguments) if call.handler.is_async else functions.call_in_thread(self._origin.call, function, *arguments)
        handler = self._handlers[key] = Interruptible(made)
        soft = job.get("soft_timeout")
        timer = None if soft is None else self._loop.call_later(soft, self._interrupt, key, "soft-timeout", soft)
        try:
            value = await self._origin.wait_for(handler)
        finally:
            del self._handlers[key]
            if timer is not None:
                timer.cancel()
        failpoints.hit("handler.returned")
        return value

    async def _deliver(self, job: Job) -> Report:
        notifier, event, options, context = runs.prepare_delivery(job, self._registry, self._settings)
        async with asyncio.timeout(context.timeout):
            if functions.is_async(notifier.send):
                said = await notifier.send(event, options, context)
            else:
                said = await self._in_thread(notifier.send, event, options, context)
            if functions.is_awaitable(said):
                said = await said
        return {"outcome": "succeeded", "detail": "" if said is None else storable_text(said, 500)}

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call = self._threads.submit(contextvars.copy_context().run, self._origin.call, function, *arguments)
        try:
            return await asyncio.wrap_future(call)
        finally:
            if not call.done():
                self._send({"stuck": f"{arguments[-1].route}: a thread of its notifier"})

    def _watch_observers(self) -> None:
        patience = self._settings.deliveries.timeout
        if self._observers.busy_for() < patience:
            asyncio.get_running_loop().call_later(min(1.0, patience), self._watch_observers)
        else:
            self._send({"stuck": "an observer of events"})

    def _on_term(self, *_: object) -> None:
        """The loop is blocked: interrupt the coroutine that blocks it. Ignored when it is none of ours, or all is well.

        All is well if nothing of what the engine has said waits to be read: it asks for an answer before it sends the signal. An
        orchestrator that signals every process it knows must not hit what happens to run at that moment.
        """
        try:
            asked = self._channel.recv(1, socket.MSG_PEEK)
            current = asyncio.current_task()
        except (OSError, RuntimeError):
            return
        if asked and (self._resources.is_starting(current) or any(task is current for task, _ in self._running.values())):
            raise interruption("blocked")
