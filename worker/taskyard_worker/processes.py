"""The engine's side of its processes: starts the zygote, has children forked, and talks to them. All in the engine's loop."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import structlog

from taskyard.errors import Interruption
from taskyard.pythons import python
from taskyard_worker import deaths, wire
from taskyard_worker.outcomes import unstarted

log = structlog.get_logger(__name__)

#: Seconds between two looks at what a process has reported that has more to do.
REST = 0.002
#: Seconds that the zygote gets to tell what a process died of.
DEATH_NEWS = 1.0
#: Seconds that lifespans get to end, before their process is killed.
END_GRACE = 3.0
#: Seconds before a fork that the system refused is tried again.
FORK_PAUSE = 1.0


class Work(Protocol):
    """Something that a child does. ``reported`` is called once, with None if the child died before."""

    key: int
    #: Has the ``key`` too.
    job: dict[str, Any]

    def reported(self, report: dict[str, Any] | None) -> None: ...

    def progressed(self, said: dict[str, Any]) -> None: ...

    def logged(self, said: dict[str, Any]) -> None: ...

    def begins(self, seconds: float) -> None: ...


class Child:
    """A forked child, as the engine sees it."""

    def __init__(self, pid: int, kind: str, on_lifespan: Callable[[str, str | None], None], on_blocked: Callable[[str, float], None]) -> None:
        self._on_lifespan = on_lifespan
        self._on_blocked = on_blocked
        self.pid = pid
        self.kind = kind
        self.dead = False
        #: What it died of, once that is known. Empty: nobody knows.
        self.death = ""
        self._killed = False
        self._end: asyncio.TimerHandle | None = None
        self._death_news: asyncio.TimerHandle | None = None
        #: Gets no more works, and is killed when it has none left.
        self.spent = False
        #: Is spent when its works have ended.
        self.passing = False
        #: Held by who makes its event loop go on.
        self.unblocking = asyncio.Lock()
        self._transport: asyncio.Transport | None = None
        self._works: dict[int, Work] = {}
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self, channel: socket.socket) -> None:
        """Talk to it from now on."""
        made = lambda: wire.Messages(self._hear, self._lost)  # noqa: E731
        self._transport, _ = await asyncio.get_running_loop().create_connection(made, sock=channel)

    def start(self, works: Iterable[Work]) -> None:
        """Start works: all at once in an async child, one after the other in a sync one."""
        works = list(works)
        if self.dead:
            for work in works:
                asyncio.get_running_loop().call_soon(work.reported, unstarted("its process ended before it began"))
            return
        self._works.update((work.key, work) for work in works)
        self.send({"run": [work.job for work in works]})

    def cancel(self, key: int, reason: Interruption) -> None:
        """Ask for the end of a work; one that has not begun is reported as ``unstarted``."""
        self.send({"cancel": key, "reason": reason})

    def give_back(self) -> None:
        """Ask a sync child to report as ``unstarted`` what it has not begun."""
        self.send({"give_back": True})

    def forget(self, key: int) -> None:
        """Wait no longer for a work's report."""
        self._works.pop(key, None)
        self.end_if_idle()

    def retire(self) -> None:
        """Give it no more works; what it runs may end."""
        self.spent = True
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """End it, if it has nothing to do and is to get no more."""
        if not self._works and (self.spent or self.passing):
            self.spent = True
            self.end()

    def end(self) -> None:
        """Let it end what its plugins' lifespans have begun, and kill it if that takes too long."""
        if self._end is None and not self.dead:
            self.send({"end": True})
            self._end = asyncio.get_running_loop().call_later(END_GRACE, self.kill)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, if the child lives."""
        if not self.dead and self._transport is not None:
            self._transport.write(wire.pack(message))

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when it has ended."""
        return self._gone

    async def answers(self, key: int, seconds: float) -> bool:
        """Does the child's event loop answer within so many seconds?"""
        pong = self._pongs[key] = asyncio.get_running_loop().create_future()
        self.send({"ping": key})
        done, _ = await asyncio.wait({pong, self._gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._pongs.pop(key, None)
        return pong in done

    def interrupt(self, key: int, reason: Interruption) -> None:
        """Raise in a work. A sync child does so itself, for it may have gone on to its next work; a blocked event loop is signalled."""
        if self.kind == "sync":
            self.send({"interrupt": key, "reason": reason})
        else:
            self._signal(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the child and all that it started."""
        self._killed = self._killed or not self.dead
        self._signal(os.killpg, signal.SIGKILL)

    def died_of(self, death: str) -> None:
        """The zygote knows what it died of."""
        self.death = "its worker killed it" if self._killed else death
        if self._death_news is not None:
            self._report_lost()

    def _signal(self, how: Callable[[int, int], None], number: int) -> None:
        if not self.dead:
            with suppress(ProcessLookupError):
                how(self.pid, number)

    def _hear(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if "report" in message:
                if work := self._works.pop(message["key"], None):
                    work.reported(message["report"])
                    self.end_if_idle()
            elif "progress" in message:
                if work := self._works.get(message["key"]):
                    work.progressed(message["progress"])
            elif "lines" in message:
                if work := self._works.get(message["key"]):
                    work.logged(message)
            elif "begins" in message:
                if work := self._works.get(message["key"]):
                    work.begins(message["begins"])
            elif "plugin" in message:
                self._on_lifespan(message["plugin"], message["problem"])
            elif "blocked" in message:
                self._on_blocked(message["type"], message["blocked"])
            elif "pong" in message:
                if (pong := self._pongs.get(message["pong"])) and not pong.done():
                    pong.set_result(None)
            elif "stuck" in message:
                log.warning("child.stuck", pid=self.pid, what=message["stuck"], consequence="another takes its place")
                self.retire()
        if len(self._works) > 1:
            self._look_away()

    def _look_away(self) -> None:
        """For a moment: what works through many quick tasks would wake this loop for each, which takes longer than they do."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()
            asyncio.get_running_loop().call_later(REST, transport.resume_reading)

    def _lost(self) -> None:
        # Its end of the socket is closed, but something in its group may live on.
        self._signal(os.killpg, signal.SIGKILL)
        self.dead = True
        if self._end is not None:
            self._end.cancel()
        self._gone.set_result(None)
        self._death_news = asyncio.get_running_loop().call_later(0.0 if self.death or not self._works else DEATH_NEWS, self._report_lost)

    def _report_lost(self) -> None:
        if self._death_news is not None:
            self._death_news.cancel()
        works, self._works = self._works, {}
        for work in works.values():
            work.reported(None)


class Shared:
    """One async child for many works; another one when that has died or is spent. ``passing``: it ends whenever it is idle."""

    def __init__(self, nursery: Nursery, *, passing: bool = False) -> None:
        self._nursery = nursery
        self._passing = passing
        self._child: Child | None = None
        self._forking = asyncio.Lock()

    async def get(self) -> Child:
        """The child. Start works in it before anything is awaited: it may be spent later."""
        async with self._forking:
            if self._child is None or self._child.dead or self._child.spent:
                self._child = await self._nursery.fork("async")
                self._child.passing = self._passing
            return self._child


class Nursery:
    """The zygote and its children."""

    def __init__(self, on_lost: Callable[[], None], on_lifespan: Callable[[str, str | None], None], on_blocked: Callable[[str, float], None]) -> None:
        self._on_lost = on_lost
        self._on_lifespan = on_lifespan
        self._on_blocked = on_blocked
        self._forks: deque[asyncio.Future[int]] = deque()
        self._children: set[Child] = set()
        self._out_of_memory = deaths.OutOfMemory()
        self._keys = itertools.count(1)
        self._zygote: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._up = asyncio.Event()

    def next_key(self) -> int:
        """A number for a job that no other job of this worker has."""
        return next(self._keys)

    async def start(self) -> None:
        """Start the zygote and wait until it has imported the plugins.

        Raises:
            RuntimeError: it ended instead; what it had to say is on standard error.
        """
        await self._end_zygote(kill=True)
        ours, theirs = socket.socketpair()
        command = python("-m", "taskyard_worker.zygote", str(theirs.fileno()))
        # A process group of its own: a signal to the worker's group, Ctrl-C say, is for the worker, which decides when its processes end.
        self._zygote = subprocess.Popen(command, pass_fds=[theirs.fileno()], process_group=0)  # noqa: S603, ASYNC220
        theirs.close()
        self._channel = ours
        reader, self._writer = await asyncio.open_connection(sock=ours)
        if await wire.read(reader) is None:
            self._writer.close()
            raise RuntimeError("The process that loads the plugins ended at its start; its messages are above.")
        self._listening = asyncio.create_task(self._listen(reader))
        self._up.set()

    async def fork(self, kind: str) -> Child:
        """A new child: ``sync`` or ``async``. Where the zygote is lost, the next one's: whoever asks has claimed tasks to run.

        While the system has no process, memory or descriptor to spare, it is tried again.
        """
        while True:
            await self._up.wait()
            try:
                return await self._fork(kind)
            except ConnectionError:
                self._up.clear()
            except OSError as error:
                log.error("child.not_forked", error=str(error), seconds=FORK_PAUSE, consequence="what is claimed waits, and it is tried again")
                await asyncio.sleep(FORK_PAUSE)

    async def _fork(self, kind: str) -> Child:
        assert self._channel is not None
        ours, theirs = socket.socketpair()
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            with theirs:
                socket.send_fds(self._channel, [b"a" if kind == "async" else b"s"], [theirs.fileno()])
            self._forks.append(forked)
            pid = await forked
        except BaseException:
            ours.close()
            raise
        child = Child(pid, kind, self._on_lifespan, self._on_blocked)
        await child.connect(ours)
        self._children.add(child)
        return child

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (message := await wire.read(reader)) is not None:
            if "forked" in message:
                self._forks.popleft().set_result(message["forked"])
            elif "unforked" in message:
                self._forks.popleft().set_exception(OSError(message["unforked"]))
            else:
                self._bury(message)
        self._up.clear()
        for forked in self._forks:
            forked.set_exception(ConnectionResetError())
        self._forks.clear()
        for child in self._children:
            child.spent = True
            child.kill()
        self._on_lost()

    def _bury(self, message: dict[str, Any]) -> None:
        """A child has ended: its works are told what it died of."""
        death = deaths.describe(message["status"], signalled=message["signalled"], out_of_memory=self._out_of_memory.happened())
        for child in [child for child in self._children if child.pid == message["exited"]]:
            self._children.discard(child)
            child.died_of(death)
        log.debug("child.exited", **message, death=death)

    async def stop(self) -> None:
        """End all processes: at once, but for what their lifespans have to end."""
        children = [child for child in self._children if not child.dead]
        for child in children:
            child.end()
        if children:
            await asyncio.wait([child.gone for child in children], timeout=END_GRACE)
        if self._listening is not None:
            self._listening.cancel()
        for child in self._children:
            child.kill()
        await self._end_zygote(kill=False)

    async def _end_zygote(self, *, kill: bool) -> None:
        """Wait for the end of the zygote, if there is one: one that is lost is made to end."""
        if self._writer is not None:
            self._writer.close()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            if kill:
                zygote.kill()
            await asyncio.get_running_loop().run_in_executor(None, zygote.wait)
