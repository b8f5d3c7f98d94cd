"""Handlers that do to their process what real ones do: fork it, leave threads behind, set it up anew."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from taskyard import Context, handler, hookimpl

FORK = multiprocessing.get_context("fork")


class Do(BaseModel):
    what: str
    with_: Any = None


def square(x: int) -> int:
    return x * x


def slowly(x: int) -> int:
    time.sleep(0 if x < 2 else 600)
    return x


def speak(ctx: Context) -> None:
    """In a fork: says all that a handler can say."""
    ctx.progress(0.99, "from a fork")
    ctx.log.info("from a fork")


def pools(ctx: Context) -> int:
    for _ in range(10):
        with FORK.Pool(4) as pool:
            pool.map(square, range(10))
    return 10


def left_pool(ctx: Context) -> int:
    with FORK.Pool(2) as pool:
        return next(pool.imap(slowly, range(100)))


def terminated(ctx: Context) -> int | None:
    process = FORK.Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    return process.exitcode


def executor(context: str) -> Callable[[Context], list[int]]:
    def run(ctx: Context) -> list[int]:
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(context)) as pool:
            return list(pool.map(square, range(4)))

    return run


def forked(then: Callable[[Context], Any]) -> Callable[[Context], int]:
    """Forks; the copy goes on with ``then``, and out of the handler."""

    def run(ctx: Context) -> int:
        pid = os.fork()
        if pid == 0:
            speak(ctx)
            then(ctx)
            return -1
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


def spoken(ctx: Context) -> int | None:
    process = FORK.Process(target=speak, args=(ctx,))
    process.start()
    process.join()
    return process.exitcode


def own_handler(ctx: Context) -> int:
    """A handler's own disposition stays in its forks, as in any program."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(17))
    process = FORK.Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    return process.exitcode or 0


def program(*options: str) -> Callable[[Context], str]:
    code = "import os, sys; print([fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}') and 'socket' in os.readlink(f'/proc/self/fd/{fd}')])"

    def run(ctx: Context) -> str:
        return subprocess.run([sys.executable, *options, "-c", code], close_fds=False, capture_output=True, text=True, check=True).stdout.strip()

    return run


def where(module: str) -> str:
    """Where a process finds a module."""
    found = importlib.import_module(module).__file__ or ""
    return "standard library" if Path(found).is_relative_to(sysconfig.get_path("stdlib")) else found


def spawned_import(ctx: Context, module: str) -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(where, (module,))


DEEDS: Mapping[str, Callable[[Context], Any]] = {
    "pools": pools,
    "left pool": left_pool,
    "terminate": terminated,
    "fork executor": executor("fork"),
    "spawn executor": executor("spawn"),
    "forkserver executor": executor("forkserver"),
    "fork that returns": forked(lambda _: None),
    "fork that raises": forked(lambda _: 1 / 0),
    "fork that exits": forked(lambda _: sys.exit(5)),
    "fork that exits well": forked(lambda _: sys.exit()),
    "fork that speaks": spoken,
    "own handler": own_handler,
    "program": program(),
}


DEEDS_WITH: Mapping[str, Callable[[Context, Any], Any]] = {
    "spawned import": spawned_import,
}


@handler("c.do", bundle=1)
def do(payload: Do, ctx: Context) -> Any:
    """Do something, in a process."""
    return DEEDS[payload.what](ctx) if payload.what in DEEDS else DEEDS_WITH[payload.what](ctx, payload.with_)


@handler("c.ado")
async def ado(payload: Do, ctx: Context) -> Any:
    """Do something, in the event loop."""
    return DEEDS[payload.what](ctx)


@handler("c.afork")
async def afork(payload: Do, ctx: Context) -> int:
    """Fork in the event loop; the copy awaits."""
    pid = os.fork()
    if pid == 0:
        speak(ctx)
        await asyncio.sleep(0)
        await asyncio.get_event_loop().create_future()
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])


@handler("c.beside")
async def beside(payload: Do, ctx: Context) -> int:
    """Take a step at each turn of the loop, and count them in a file: a copy that took one would be seen."""
    for _ in range(200):
        fd = os.open(payload.with_, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.close(fd)
        await asyncio.sleep(0)
    return 200


@handler("c.nothing")
def nothing(payload: dict[str, Any]) -> None:
    """Do nothing."""


@handler("c.anothing")
async def anothing(payload: dict[str, Any]) -> None:
    """Do nothing, in the event loop."""


@hookimpl
def taskyard_handlers() -> list[Any]:
    return [do, ado, afork, beside, nothing, anothing]
