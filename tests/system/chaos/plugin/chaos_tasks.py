"""The handlers that run under chaos: a plugin like a stranger's, found by entry point on PYTHONPATH.

Each writes its start and its end to a file of its own, and gives the fence that it was called with as its result or in its error,
so that the row's fence can be compared with it. With CHAOS_MUTATE, importing this takes a guard out of the process.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import chaos_mutations  # type: ignore[import-not-found]  # beside this file, on PYTHONPATH
from pydantic import BaseModel

from taskyard import Context, Retry, RetryLater, TaskFailed, handler, hookimpl

chaos_mutations.apply(os.environ.get("CHAOS_MUTATE", ""))


class Work(BaseModel):
    """What to do, and for how long."""

    seconds: float = 0.0


class Done(BaseModel):
    """The fence of the run that did it, and the tasks it asked for."""

    fence: int
    children: list[str] = []


def record(what: str, ctx: Context) -> None:
    """One line, in one write to a file that is opened for appending."""
    line = f"{what} {time.time():.6f} {ctx.task_id} {ctx.fence} {os.getpid()}\n"
    descriptor = os.open(os.environ["CHAOS_HANDLERS"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@handler("chaos.sync", timeout=30)
def sync(payload: Work, ctx: Context) -> Done:
    """Work in a process."""
    record("start", ctx)
    until = time.monotonic() + payload.seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
        ctx.raise_if_cancelled()
    record("end", ctx)
    return Done(fence=ctx.fence)


@handler("chaos.async", timeout=30)
async def async_(payload: Work, ctx: Context) -> Done:
    """Work in the event loop."""
    record("start", ctx)
    await asyncio.sleep(payload.seconds)
    record("end", ctx)
    return Done(fence=ctx.fence)


@handler("chaos.again", timeout=120)
async def again(payload: Work, ctx: Context) -> Done:
    """Work in the event loop; a second run lasts until it is told to end."""
    record("start", ctx)
    await asyncio.sleep(payload.seconds)
    while ctx.fence > 1 and not Path(os.environ["CHAOS_GATE"]).exists():  # noqa: ASYNC110, ASYNC240  # another process makes it
        await asyncio.sleep(0.05)
    record("end", ctx)
    return Done(fence=ctx.fence)


@handler("chaos.io", timeout=30, queue="io")
async def io(payload: Work, ctx: Context) -> Done:
    """Work in another queue, and say how far it is."""
    record("start", ctx)
    ctx.progress(0.5, "half")
    await asyncio.sleep(payload.seconds)
    record("end", ctx)
    return Done(fence=ctx.fence)


@handler("chaos.flaky", retry=Retry(max_attempts=6, base=0.1), timeout=30)
async def flaky(payload: Work, ctx: Context) -> Done:
    """Fail twice, once of each kind."""
    record("start", ctx)
    if ctx.attempt == 1:
        raise RetryLater(delay=0.1)
    if ctx.attempt == 2:
        raise ValueError("as it must")
    record("end", ctx)
    return Done(fence=ctx.fence)


@handler("chaos.refuse")
def refuse(payload: Work, ctx: Context) -> Done:
    """Fail for good."""
    record("start", ctx)
    raise TaskFailed("no", code="refused", fence=ctx.fence)


@handler("chaos.spent", retry=Retry(max_attempts=2, base=0.1))
async def spent(payload: Work, ctx: Context) -> Done:
    """Fail until no attempt is left."""
    record("start", ctx)
    raise ValueError("as it must")


@handler("chaos.parent", timeout=30)
async def parent(payload: Work, ctx: Context) -> Done:
    """Ask for two more tasks."""
    record("start", ctx)
    children = [str(ctx.submit("chaos.async", {"seconds": payload.seconds}, tags=["child"])) for _ in range(2)]
    record("end", ctx)
    return Done(fence=ctx.fence, children=children)


@hookimpl
def taskyard_handlers() -> list[Any]:
    return [sync, async_, again, io, flaky, refuse, spent, parent]
