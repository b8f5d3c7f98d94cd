"""What `taskyard up` keeps running: the roles and the embedded servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Protocol

from taskyard.children import dying_with_us
from taskyard.embedded import Server
from taskyard.up.output import Output

# Seconds to wait for a part's last lines once it has ended.
_LAST_LINES = 2.0


class Part(Protocol):
    """One thing that is kept running."""

    name: str
    #: Do other parts use it, so that it is stopped after them?
    is_used: bool

    async def start(self) -> None:
        """Start it, for the first time or again."""

    async def ended(self) -> int:
        """Wait until it ends, and clear away what it left. Its exit status, negative for a signal."""

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop it: politely until ``hurry`` is set, or its time is up."""


class Role:
    """A `taskyard` command as a child, in a session of its own: a terminal's Ctrl-C reaches `up` alone."""

    is_used = False

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], output: Output, grace: float) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._output = output
        self._grace = grace
        self._process: asyncio.subprocess.Process | None = None
        self._copying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the command."""
        self._process = await asyncio.create_subprocess_exec(
            *dying_with_us(self._command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._copying = asyncio.create_task(self._output.copy(self.name, self._process.stdout))

    async def ended(self) -> int:
        """Wait for the command, then kill what is left of its process group."""
        assert self._process is not None
        status = await self._process.wait()
        self._kill_group()
        if self._copying is not None:
            # A process that left the group may keep the pipe open.
            await asyncio.wait([self._copying], timeout=_LAST_LINES)
        return status

    async def stop(self, hurry: asyncio.Event) -> None:
        """SIGTERM; SIGKILL to its whole group when the grace is over or somebody hurries."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        went, hurried = asyncio.ensure_future(self._process.wait()), asyncio.ensure_future(hurry.wait())
        await asyncio.wait([went, hurried], timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not went.done():
            self._output.say(f"{self.name} is killed")
            self._kill_group()
        await self.ended()

    def _kill_group(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Embedded:
    """An embedded server. Its address is the same after a restart, so the roles find it again."""

    is_used = True

    def __init__(self, name: str, start: Callable[[], Server]) -> None:
        self.name = name
        self._start = start
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where it is, once started."""
        assert self._server is not None, f"{self.name} is not started"
        return self._server.url

    async def start(self) -> None:
        """Start it here and not in a thread: the kernel ends it with the thread that started it."""
        self._server = self._start()

    async def ended(self) -> int:
        """Wait for its process, for ever if it has none."""
        assert self._server is not None
        if self._server.pid is None:
            await asyncio.Event().wait()
        status = await asyncio.to_thread(self._server.wait)
        self._server.stop()
        return status

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop it. It is quick, and its way down keeps the data clean, so nobody hurries it."""
        if self._server is not None:
            self._server.stop()
