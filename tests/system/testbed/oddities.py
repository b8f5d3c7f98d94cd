"""What no handler should do, and some day one does. Each must cost nobody but itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import BaseModel

from taskyard import Context, Retry, RetryLater, TaskFailed, handler


class Odd(BaseModel):
    what: str


class Good(BaseModel):
    ok: int


class Other(BaseModel):
    name: str


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def _raise(error: BaseException) -> Any:
    raise error


def _deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(3000):
        found = [found]
    return found


ODDITIES: Mapping[str, Callable[[Context], Any]] = {
    "number for a code": lambda _: _raise(TaskFailed("x", code=5)),  # type: ignore[arg-type]  # as a plugin without types may
    "objects for details": lambda _: _raise(TaskFailed("x", code="odd", thing=object(), huge=10**5000)),
    "nul in its failure": lambda _: _raise(TaskFailed("a\0b\ud800", code="c\0d")),
    "nul in its excuse": lambda _: _raise(RetryLater("a\0b", delay=0.1)),
    "failure in a group": lambda _: _raise(ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [TaskFailed("x", code="gone", page=7)])])),
    "excuse in a group": lambda _: _raise(ExceptionGroup("g", [RetryLater("x", delay=0.1, code="busy")])),
    "error that is never tried again": lambda _: _raise(PermissionError("x")),
    "awaitable": lambda _: _later(3),
    "no time": lambda _: _raise(RetryLater("x", delay=float("nan"))),
    "all time": lambda _: _raise(RetryLater("x", delay=float("inf"))),
    "number for a message": lambda ctx: ctx.progress(0.5, 3),  # type: ignore[arg-type]  # as a plugin without types may
    "nul for a message": lambda ctx: ctx.progress(0.5, "a\0b\ud800"),
    "huge number": lambda _: 10**5000,
    "not a number": lambda _: float("nan"),
    "deep": lambda _: _deep(),
    "object": lambda _: object(),
    "object for metadata": lambda ctx: ctx.submit("t.echo", {"word": "x"}, metadata={"at": {1}}),
    "fork": lambda _: {"copy": os.fork() == 0},
    "exit": lambda _: sys.exit(3),
    "ctrl-c": lambda _: _raise(KeyboardInterrupt()),
    "generator's exit": lambda _: _raise(GeneratorExit()),
    "own cancellation": lambda _: _raise(asyncio.CancelledError()),
    "unspeakable": lambda _: _raise(Unspeakable()),
    "sigterm": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "end of the process": lambda _: os._exit(7),
    "segmentation fault": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "closed files": lambda _: os.closerange(3, 300),
    "end of the loop": lambda _: asyncio.get_running_loop().stop(),
    "task that exits": lambda _: str(asyncio.get_running_loop().create_task(_exit())),
}


async def _later(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def _exit() -> None:
    sys.exit(4)


@handler("t.odd", retry=Retry(max_attempts=2, base=0, never=PermissionError))
def odd(payload: Odd, ctx: Context) -> Any:
    """Do something odd in a process."""
    return ODDITIES[payload.what](ctx)


@handler("t.aodd", retry=Retry(max_attempts=2, base=0, never=PermissionError))
async def aodd(payload: Odd, ctx: Context) -> Any:
    """Do something odd in the event loop."""
    return ODDITIES[payload.what](ctx)


@handler("t.lie")
def lie(payload: Odd) -> Good:
    """Return another model than it says, or one that was never validated."""
    lies: dict[str, Any] = {"other": Other(name="x"), "never validated": Good.model_construct(ok=cast(int, "not a number"))}
    found: Good = lies[payload.what]
    return found
