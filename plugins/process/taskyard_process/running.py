"""Run one program in a process group of its own, keep what it prints up to a limit, and leave nothing of it behind.

The group's leader is a small guardian (guardian.py) that ends the group if this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from taskyard_process import guardian

# A cancelled handler has about a second to be gone: the group gets less than half of it to end by itself.
TERM_GRACE = 0.4
# Seconds that the pipes may stay open after the program's end, when a process that left the group still holds them.
DRAIN_GRACE = 0.5
STDOUT, STDERR = 1, 2


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended. ``exit_code`` is negative for the signal that killed it; None when its time was up."""

    exit_code: int | None
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    duration: float


class _Output(asyncio.SubprocessProtocol):
    """Keeps the first ``limit`` bytes of each stream and throws the rest away, so that the program never blocks on a full pipe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = {STDOUT: bytearray(), STDERR: bytearray()}
        self._seen = {STDOUT: 0, STDERR: 0}
        self._open = {STDOUT, STDERR}
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._seen[fd] += len(data)
        self._kept[fd] += data[: self._limit - len(self._kept[fd])]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()

    def text(self, fd: int) -> str:
        """What was kept, as text. PostgreSQL stores no NUL; it becomes U+FFFD, as bytes that are not UTF-8 do."""
        return self._kept[fd].decode(errors="replace").replace("\x00", "\ufffd")

    def truncated(self, fd: int) -> bool:
        return self._seen[fd] > self._limit


async def run_command(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: bytes | None, limit: int, seconds: float) -> Finished:
    """Run a program to its end, or for ``seconds``; then its whole process group is ended, TERM first and KILL after.

    The same happens when the caller is cancelled. ``limit`` is in bytes, for stdout and stderr each.

    Raises:
        OSError: the program can't be started.
    """
    _check_program(command[0])
    started = time.monotonic()
    theirs, ours = os.pipe()
    try:
        transport, output = await _start(command, theirs, env=env, cwd=cwd, stdin=stdin, limit=limit)
        try:
            _feed(transport, stdin)
            in_time = await _within(output.exited, seconds)
        finally:
            await _end(transport, output)
    finally:
        os.close(theirs)
        os.close(ours)
    return Finished(
        exit_code=transport.get_returncode() if in_time else None,
        stdout=output.text(STDOUT),
        stderr=output.text(STDERR),
        stdout_truncated=output.truncated(STDOUT),
        stderr_truncated=output.truncated(STDERR),
        duration=round(time.monotonic() - started, 4),
    )


def _check_program(path: str) -> None:
    if not os.access(path, os.X_OK) or not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, "no such program, or it may not be run", path)


async def _start(
    command: Sequence[str], lifeline: int, *, env: Mapping[str, str], cwd: Path, stdin: bytes | None, limit: int
) -> tuple[asyncio.SubprocessTransport, _Output]:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.get_running_loop().subprocess_exec(
        lambda: _Output(limit),
        *(sys.executable, "-I", "-S", guardian.__file__, str(lifeline), *command),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else pipe,
        stdout=pipe,
        stderr=pipe,
        env=dict(env),
        cwd=cwd,
        pass_fds=[lifeline],
        start_new_session=True,
    )


def _feed(transport: asyncio.SubprocessTransport, stdin: bytes | None) -> None:
    """The transport writes as the program reads, and drops the rest if the program closes its stdin."""
    if stdin is not None:
        pipe = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        pipe.write(stdin)
        pipe.write_eof()


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> None:
    """End the whole group, however the program ended: what it started in the background goes with it."""
    group = transport.get_pid()
    try:
        if not output.exited.is_set():
            _signal(group, signal.SIGTERM)
            await _within(output.exited, TERM_GRACE)
    finally:
        _signal(group, signal.SIGKILL)
        try:
            await output.exited.wait()
            await _within(output.drained, DRAIN_GRACE)
        finally:
            transport.close()


def _signal(group: int, number: signal.Signals) -> None:
    # PermissionError: what is left of the group runs as another user (a setuid program).
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False when ``seconds`` passed first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
