"""Taskyard's tasks for the benchmarks, found by entry point as any plugin's. Each writes the time at which it starts."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from pydantic import BaseModel

from taskyard import handler, hookimpl


class Numbered(BaseModel):
    """Which task of a round it is."""

    number: int


class Nap(Numbered):
    """How long it sleeps."""

    seconds: float = 1.0


def started(number: int) -> None:
    """Note the start. The file is opened each time, so that every side pays the same for it."""
    line = f"{number} {time.time_ns()}\n".encode()
    descriptor = os.open(os.environ["BENCH_WITNESS"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line)
    os.close(descriptor)


@handler("bench.sync")
def sync(payload: Numbered) -> None:
    """Do nothing, in a process."""
    started(payload.number)


@handler("bench.async")
async def async_(payload: Numbered) -> None:
    """Do nothing, in the event loop."""
    started(payload.number)


@handler("bench.sleep", timeout=60)
async def sleep(payload: Nap) -> None:
    """Sleep in the event loop."""
    started(payload.number)
    await asyncio.sleep(payload.seconds)


@handler("bench.mixed", timeout=60)
def mixed(payload: Nap) -> None:
    """Work for a moment, or for long, in a process."""
    started(payload.number)
    time.sleep(payload.seconds)


@handler("bench.alone", timeout=60, bundle=1)
def alone(payload: Nap) -> None:
    """The same, but that each travels alone."""
    started(payload.number)
    time.sleep(payload.seconds)


@hookimpl
def taskyard_handlers() -> list[Any]:
    """All of them."""
    return [sync, async_, sleep, mixed, alone]
