"""A plugin whose handlers share resources: put on the path of a test's roles. It writes what happens where to the file that TESTBED_LOG names."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from taskyard import Context, Handler, Retry, RetryLater, handler, hookimpl


def witness(*words: object) -> None:
    with Path(os.environ["TESTBED_LOG"]).open("a") as log:
        log.write(" ".join(map(str, (f"{time.time():.6f}", *words))) + "\n")


def switch(name: str) -> Path:
    """A file by which the test turns something on."""
    return Path(os.environ["TESTBED_LOG"]).with_name(name)


class Client:
    """Is made in an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


class Pool:
    """Is made anywhere."""


class Fragile:
    """Is made while nobody has switched it off."""


class Slow:
    """Is made when the test says so."""


class Deadly:
    """Ends the process that makes it, while somebody has switched that on."""


async def client() -> AsyncIterator[Client]:
    witness("client-begins", os.getpid())
    # A task group must be left by the task that has entered it.
    async with asyncio.TaskGroup():
        yield Client()
    witness("client-ends", os.getpid())


def pool() -> Iterator[Pool]:
    witness("pool-begins", os.getpid())
    yield Pool()
    witness("pool-ends", os.getpid())


def fragile() -> Iterator[Fragile]:
    if switch("off").exists():
        raise ConnectionError("it is switched off")
    yield Fragile()


async def slow_in_loop() -> AsyncIterator[Slow]:
    witness("slow-begins")
    while not switch("slow").exists():  # noqa: ASYNC110  # a test in another process makes it
        await asyncio.sleep(0.02)
    yield Slow()


def deadly() -> Iterator[Deadly]:
    if switch("deadly").exists():
        os._exit(7)
    yield Deadly()


class Where(BaseModel):
    pid: int
    resource: int


@handler("s.async")
async def in_loop(payload: None, ctx: Context, client: Client, pool: Pool) -> Where:
    """Say which client this is."""
    assert client.loop is asyncio.get_running_loop()
    return Where(pid=os.getpid(), resource=id(client))


@handler("s.sync")
def in_process(payload: None, pool: Pool) -> Where:
    """Say which pool this is."""
    return Where(pid=os.getpid(), resource=id(pool))


@handler("s.batch", batch=10)
async def together(payloads: list[None], *, client: Client) -> list[Where]:
    """Say which client this is, for each."""
    return [Where(pid=os.getpid(), resource=id(client)) for _ in payloads]


@handler("s.fragile")
def fragile_sync(payload: None, fragile: Fragile) -> int:
    """Need what may be off."""
    return 1


@handler("s.afragile")
async def fragile_async(payload: None, fragile: Fragile) -> int:
    """Need what may be off, in the event loop."""
    return 1


@handler("s.slow", timeout=0.5)
async def slow(payload: None, ctx: Context, slow: Slow) -> bool:
    """Have less time than the start takes."""
    assert ctx.deadline is not None
    return ctx.deadline.timestamp() > time.time()


@handler("s.deadly")
def deadly_sync(payload: None, deadly: Deadly) -> int:
    """Need what ends the process."""
    return 1


class Order(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)


@handler("s.twice", retry=Retry(max_attempts=2))
def twice(payload: Order, ctx: Context) -> uuid.UUID:
    """Ask for a second attempt."""
    witness("twice", ctx.attempt, payload.id)
    if ctx.attempt == 1:
        raise RetryLater(delay=0)
    return payload.id


@handler("s.plain")
def plain(payload: None) -> int:
    """Need nothing."""
    return os.getpid()


@hookimpl
def taskyard_handlers() -> list[Handler[Any, Any]]:
    return [in_loop, in_process, together, fragile_sync, fragile_async, slow, deadly_sync, twice, plain]


@hookimpl
def taskyard_lifespan() -> list[Any]:
    return [client, pool, fragile, slow_in_loop, deadly]
