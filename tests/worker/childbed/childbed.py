"""Handlers that do to their process what real ones do: fork it, leave threads behind, set it up anew."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import importlib
import io
import locale
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
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


class Leftover(threading.Thread):
    """Outlives its task, and goes on speaking for it until the file is there."""

    def __init__(self, ctx: Context, words: str, until: Path) -> None:
        super().__init__(daemon=True)
        self.ctx, self.words, self.until = ctx, words, until

    def run(self) -> None:
        while not self.until.exists():
            self.ctx.progress(0.5, self.words)
            self.ctx.log.info(self.words)
            time.sleep(0.001)


def leave_thread(ctx: Context, until: str) -> None:
    Leftover(ctx, f"of {ctx.task_id}", Path(until)).start()


def speak_for_itself(ctx: Context, words: str) -> None:
    """Speaks long enough for others to break in, and logs what its context has."""
    for _ in range(20):
        ctx.progress(0.1, words)
        time.sleep(0.002)
    ctx.log.info(words)


def logging_config(**more: Any) -> None:
    logging.config.dictConfig({"version": 1, **more})


def _no_record(*_: Any, **__: Any) -> logging.LogRecord:
    raise RuntimeError("no record")


def silence(_: Context, how: str) -> None:
    """What plugins do to logging, each for its own good."""
    ways: Mapping[str, Callable[[], Any]] = {
        "dictConfig": logging_config,
        "dictConfig of root": lambda: logging_config(root={"level": "CRITICAL", "handlers": []}),
        "basicConfig": lambda: logging.basicConfig(force=True, level="CRITICAL"),
        "disable": lambda: logging.disable(logging.CRITICAL),
        "no handlers": logging.getLogger().handlers.clear,
        "level": lambda: logging.getLogger().setLevel(100),
        "level of ours": lambda: logging.getLogger("taskyard_worker").setLevel(100),
        "filter": lambda: logging.getLogger().handlers[0].addFilter(lambda record: False),
        "formatter": lambda: logging.getLogger().handlers[0].setFormatter(None),
        "factory": lambda: logging.setLogRecordFactory(_no_record),
        "structlog": lambda: structlog.configure(processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.PrintLoggerFactory()),
        "structlog's processors": structlog.get_config()["processors"].clear,
        "structlog reset": structlog.reset_defaults,
    }
    ways[how]()


def look(_: Context) -> dict[str, Any]:
    """What a task can see of its process."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "variables": dict(structlog.contextvars.get_contextvars()).keys() - {"task_id", "type", "attempt", "fence"} == set(),
        "token": os.environ.get("TOKEN"),
        "home": "HOME" in os.environ,
        "folder": Path.cwd() == Path(os.environ["PWD_AT_START"]),
        "umask": umask,
        "locale": locale.setlocale(locale.LC_ALL),
        "hangup": signal.getsignal(signal.SIGHUP) is signal.SIG_DFL,
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "stdout": type(sys.stdout).__name__,
        "excepthook": sys.excepthook.__module__,
        "path": "/nowhere" in sys.path,
        "limit": sys.getrecursionlimit(),
        "zone": time.localtime(0).tm_gmtoff,
        "warnings": [action for action, *_ in warnings.filters if action == "error"],
        "collects": gc.isenabled(),
        "socket": socket.getdefaulttimeout(),
        "loop": asyncio.run(_nothing()),
    }


def close_streams(_: Context) -> None:
    """Closes the standard streams in all the ways that programs have, most of them without a thought."""
    io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8").close()
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding="utf-8")
    sys.stdout.close()
    getattr(sys.stdout, "detach")()  # noqa: B009  # not every TextIO has it


async def _nothing() -> None:
    """What a task runs in an event loop of its own."""


def spoil(_: Context) -> None:
    """Changes all of it, as if nobody came after."""
    structlog.contextvars.bind_contextvars(customer="acme")
    os.environ["TOKEN"] = "secret"
    os.environ.pop("HOME", None)
    os.chdir("/")
    os.umask(0o777)
    locale.setlocale(locale.LC_ALL, "C")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 3600)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    sys.stdout = io.StringIO()
    sys.excepthook = print
    sys.path.insert(0, "/nowhere")
    sys.setrecursionlimit(5000)
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    warnings.simplefilter("error")
    gc.disable()
    socket.setdefaulttimeout(1)
    asyncio._set_running_loop(asyncio.new_event_loop())


def log_by_all_ways(ctx: Context, secret: str) -> None:
    ctx.log.warning("kept", password=secret)
    structlog.get_logger("taskyard_worker.mine").warning("by structlog", password=secret)
    logging.getLogger("by.stdlib").warning("by the standard library: amqp://u:%s@h", secret)


DEEDS: Mapping[str, Callable[[Context], Any]] = {
    "pools": pools,
    "close streams": close_streams,
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
    "look": look,
    "spoil": spoil,
}


DEEDS_WITH: Mapping[str, Callable[[Context, Any], Any]] = {
    "spawned import": spawned_import,
    "leave thread": leave_thread,
    "speak": speak_for_itself,
    "silence": silence,
    "log": log_by_all_ways,
    "print": lambda _, text: print(text),
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


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)


@handler("c.block")
async def block(payload: Do, ctx: Context) -> str:
    """Block the event loop until a file is there."""
    wait_for(payload.what)
    return str(ctx.task_id)


@handler("c.try")
def try_(payload: Do, ctx: Context) -> None:
    """Try to leave something of its own to all that come after."""
    _try(payload.what, ctx)
    time.sleep(0)


@handler("c.atry")
async def atry(payload: Do, ctx: Context) -> None:
    """The same, among many at once."""
    _try(payload.what, ctx)
    await asyncio.sleep(0.001)
    await asyncio.get_running_loop().run_in_executor(None, _try, payload.what, ctx)
    await asyncio.to_thread(ctx.progress, 0.7, payload.what)
    ctx.log.info(payload.what)


def _try(words: str, ctx: Context) -> None:
    structlog.contextvars.bind_contextvars(mine=words)
    ctx.log.info(words)
    ctx.progress(0.5, words)
    threading.Thread(target=_late, args=(words, ctx), daemon=True).start()
    logging_config()


def _late(words: str, ctx: Context) -> None:
    for _ in range(3):
        ctx.progress(0.9, words)
        ctx.log.info(words)
        time.sleep(0.003)


@handler("c.nothing")
def nothing(payload: dict[str, Any]) -> None:
    """Do nothing."""


@handler("c.anothing")
async def anothing(payload: dict[str, Any]) -> None:
    """Do nothing, in the event loop."""


@hookimpl
def taskyard_handlers() -> list[Any]:
    return [do, ado, afork, beside, nothing, anothing, try_, atry, block]
