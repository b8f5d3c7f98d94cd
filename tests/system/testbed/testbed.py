"""Handlers for whole-system tests: a plugin like a stranger's, found by entry point on PYTHONPATH.

They write what they see to the file that TESTBED_LOG names, so that tests have a witness beside the database.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import batches
import oddities
from pydantic import BaseModel, ConfigDict

from taskyard import Context, DeliveryContext, Event, Interrupted, Retry, RetryLater, TaskFailed, handler, hookimpl
from taskyard.errors import UnknownTaskType
from taskyard.handlers import Handler


class Nothing(BaseModel):
    pass


class Word(BaseModel):
    word: str = ""


class Nap(BaseModel):
    seconds: float = 1.0
    word: str = ""


class Gate(BaseModel):
    """A file that the test creates to let the handler end: see tests/stack.py."""

    path: Path
    word: str = ""


def witness(*words: object) -> None:
    with Path(os.environ["TESTBED_LOG"]).open("a") as log:
        log.write(" ".join(map(str, (f"{time.time():.6f}", *words))) + "\n")


@handler("t.echo")
def echo(payload: Word, ctx: Context) -> Word:
    """Say it back."""
    witness("echo", payload.word, ctx.task_id, ctx.fence)
    return payload


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    when: datetime


@handler("t.strict")
def strict(payload: Strict) -> datetime:
    """Say when."""
    return payload.when


@handler("t.aecho", queue="io")
async def aecho(payload: Word, ctx: Context) -> Word:
    """Say it back, from the event loop."""
    witness("aecho", payload.word, ctx.task_id, ctx.fence)
    return payload


@handler("t.asleep", timeout=60)
async def asleep(payload: Nap, ctx: Context) -> Nothing:
    """Sleep in the event loop."""
    witness("asleep", payload.word, ctx.task_id, ctx.fence)
    await asyncio.sleep(payload.seconds)
    return Nothing()


@handler("t.sleep", timeout=60)
def sleep(payload: Nap, ctx: Context) -> Nothing:
    """Sleep in a process, and look whether it should stop."""
    witness("sleep", payload.word, ctx.task_id, ctx.fence)
    until = time.monotonic() + payload.seconds
    while time.monotonic() < until:
        time.sleep(0.02)
        ctx.raise_if_cancelled()
    return Nothing()


@handler("t.gated", timeout=300)
def gated(payload: Gate, ctx: Context) -> Nothing:
    """Wait in a process until the gate opens."""
    witness("gated", payload.word, ctx.task_id, ctx.fence)
    while not payload.path.exists():
        time.sleep(0.02)
        ctx.raise_if_cancelled()
    return Nothing()


@handler("t.agated", timeout=300)
async def agated(payload: Gate, ctx: Context) -> Nothing:
    """Wait in the event loop until the gate opens."""
    witness("agated", payload.word, ctx.task_id, ctx.fence)
    while not payload.path.exists():  # noqa: ASYNC110  # a test in another process opens it
        await asyncio.sleep(0.05)
    return Nothing()


@handler("t.soft", timeout=60, soft_timeout=0.2)
def soft(payload: Nothing, ctx: Context) -> list[Any]:
    """Sleep in a process until its soft timeout, and tell of it."""
    try:
        time.sleep(600)
    except Interrupted as interrupted:
        return [interrupted.reason, _soft_part(ctx)]
    return []


@handler("t.asoft", timeout=60, soft_timeout=0.2)
async def asoft(payload: Nothing, ctx: Context) -> list[Any]:
    """Sleep in the event loop until its soft timeout, and tell of it."""
    try:
        await asyncio.sleep(600)
    except Interrupted as interrupted:
        return [interrupted.reason, _soft_part(ctx)]
    return []


def _soft_part(ctx: Context) -> float:
    """Seconds between the two deadlines."""
    assert ctx.deadline is not None
    assert ctx.soft_deadline is not None
    return round((ctx.deadline - ctx.soft_deadline).total_seconds(), 3)


@handler("t.about", retry=Retry(max_attempts=7))
def about(payload: Nothing, ctx: Context) -> dict[str, Any]:
    """Tell what it knows of its task."""
    if ctx.parent_id is None:
        ctx.submit(about, payload, max_attempts=3, tags={"child"})
    return {"namespace": ctx.namespace, "parent": ctx.parent_id and str(ctx.parent_id), "max_attempts": ctx.max_attempts}


@handler("t.spin", timeout=1)
def spin(payload: Nothing) -> None:
    """Never end."""
    while True:
        pass


@handler("t.abusy", timeout=300)
async def abusy(payload: Gate) -> None:
    """Keep the event loop busy, in small steps, until the gate opens."""
    while not payload.path.exists():  # noqa: ASYNC110  # it waits for nothing: others get their turn, and it goes on
        await asyncio.sleep(0)


@handler("t.deaf", timeout=1)
def deaf(payload: Nothing) -> None:
    """Never end, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


@handler("t.aspin", timeout=1)
async def aspin(payload: Nothing) -> None:
    """Block the event loop for ever."""
    while True:
        pass


@handler("t.astubborn", timeout=1)
async def astubborn(payload: Nothing) -> None:
    """Swallow each cancellation."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@handler("t.grandchild", timeout=1)
def grandchild(payload: Word) -> None:
    """Leave a process behind."""
    process = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(600)  # {payload.word}"])
    witness("grandchild", process.pid)
    while True:
        pass


@handler("t.fail", retry=Retry(max_attempts=2, base=0.1, jitter=0))
def fail(payload: Nothing) -> None:
    """Raise each time."""
    raise ValueError("as it must")


@handler("t.refuse")
def refuse(payload: Nothing) -> None:
    """Fail for good."""
    raise TaskFailed("no", code="refused", hint="stop asking")


@handler("t.decline")
async def decline(payload: Nothing) -> None:
    """Fail for good, by the thousand."""
    raise TaskFailed("no", code="refused")


@handler("t.flaky", retry=Retry(max_attempts=5))
async def flaky(payload: Nothing, ctx: Context) -> int:
    """Succeed the third time."""
    if ctx.attempt < 3:
        raise RetryLater(delay=0.1)
    return ctx.attempt


@handler("t.die")
def die(payload: Nothing, ctx: Context) -> None:
    """Kill its own process."""
    witness("die", ctx.task_id, ctx.fence)
    os.kill(os.getpid(), signal.SIGKILL)


@handler("t.perhaps")
def perhaps(payload: Word) -> Word:
    """Kill its own process if the word says so."""
    if payload.word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return payload


@handler("t.alone", bundle=1)
def alone(payload: Word) -> Word:
    """Say it back, in a message of its own."""
    witness("begins", "alone")
    witness("ends", "alone")
    return payload


@handler("t.steps")
def steps(payload: Nothing, ctx: Context) -> dict[str, Any]:
    """Report progress."""
    for step in (0.25, 0.5, 1.0):
        ctx.progress(step, f"at {step}")
        # After the last one it ends at once: what was said last must not be lost.
        time.sleep(0.3 if step < 1 else 0)
    return {"config": None if ctx.config is None else "?", "deadline": str(isinstance(ctx.deadline, datetime))}


@handler("t.parent")
async def parent(payload: Word, ctx: Context) -> list[str]:
    """Ask for two more tasks."""
    return [str(ctx.submit("t.echo", {"word": f"{payload.word}{n}"}, priority=7)) for n in range(2)]


class Family(BaseModel):
    children: int = 2
    type: str = "t.echo"
    unique_key: str | None = None
    #: So many runs fail, after they have asked for all.
    fails: int = 0
    catches: bool = False


@handler("t.family", retry=Retry(max_attempts=5, base=0.05, jitter=0))
def family(payload: Family, ctx: Context) -> list[str]:
    """Ask for more tasks, and tell their ids."""
    witness("family", ctx.task_id, ctx.fence)
    found = []
    for number in range(payload.children):
        body = {"word": str(number)}
        try:
            found.append(str(ctx.submit(payload.type, body, unique_key=payload.unique_key)))
        except UnknownTaskType as error:
            if not payload.catches:
                raise
            found.append(str(error))
        body["word"] = "changed afterwards"
    if ctx.fence <= payload.fails:
        raise ValueError("not yet")
    return found


@handler("t.nul")
def nul(payload: Nothing) -> str:
    """Return what PostgreSQL can't store."""
    return "a\x00b"


@handler("t.large")
def large(payload: Nothing) -> str:
    """Return more than is allowed."""
    return "x" * 2_000_000


def _noise() -> None:
    print("printed\x1b[31m", "hunter2hunter2")
    print("half a line", end="", flush=True)
    print(", and the other half", file=sys.stdout)
    sys.stderr.write("to stderr\n")
    logging.getLogger("some.library").warning("logged")
    warnings.warn("warned", UserWarning, stacklevel=1)


@handler("t.noise")
def noise(payload: Nothing, ctx: Context) -> Nothing:
    """Say things in every way there is."""
    _noise()
    ctx.log.info("told")
    thread = threading.Thread(target=lambda: int("nothing"), name="unlucky")
    thread.start()
    thread.join()
    raise TaskFailed("enough")


@handler("t.anoise")
async def anoise(payload: Nothing, ctx: Context) -> Nothing:
    """Say things in every way there is, from the event loop."""
    await asyncio.sleep(0)
    _noise()
    ctx.log.info("told")
    return Nothing()


class Talk(BaseModel):
    lines: int = 0
    size: int = 10
    seconds: float = 0.0


def _talk(payload: Talk, ctx: Context) -> None:
    ctx.log.info("hello", name="Ada", password="hunter2hunter2", nested={"n": [1, 2.5, None]})
    ctx.log.debug("not for this level")
    ctx.log.warning("odd\x00 \ud800 line", where="postgresql://me:hunter2hunter2@host/db", made_of=object, many=10**5000)
    try:
        int("nothing")
    except ValueError:
        ctx.log.exception("it broke")
    for n in range(payload.lines):
        ctx.log.info("line", n=n, pad="x" * payload.size)


@handler("t.says", retry=Retry(max_attempts=2, base=0.1, jitter=0))
def says(payload: Talk, ctx: Context) -> None:
    """Log lines, and then sleep."""
    _talk(payload, ctx)
    time.sleep(payload.seconds)


@handler("t.asays")
async def asays(payload: Talk, ctx: Context) -> None:
    """Log lines from the event loop and from a thread, and then sleep."""
    await asyncio.to_thread(_talk, payload, ctx)
    await asyncio.sleep(payload.seconds)


@handler("t.babbles", timeout=1)
def babbles(payload: Nothing, ctx: Context) -> None:
    """Log in a tight loop until it is ended."""
    n = 0
    while True:
        n += 1
        ctx.log.info("babble", n=n)


class Witness:
    """A notifier that writes to the witness file; it fails the first ``failures`` times."""

    name = "witness"

    class Options(BaseModel):
        failures: int = 0
        answer: Literal["noted", "nul", "never", "hang", "exit", "gone"] = "noted"

    def send(self, event: Event, options: Options, ctx: DeliveryContext) -> str:
        if ctx.attempt <= options.failures:
            raise ConnectionError(f"not yet ({ctx.attempt})")
        if options.answer == "never":
            raise RetryLater("a\0b", delay=float("inf"))
        if options.answer == "exit":
            sys.exit(1)
        if options.answer == "hang":
            witness("hangs", event.task_id)
            time.sleep(600)
        if options.answer == "gone":
            raise TaskFailed("no more of this", code="gone")
        if event.type == "digest":
            witness("digest", event.subject, event.data["count"], len(event.data["events"]))
        witness("notified", event.type, event.task_id, ctx.delivery_id)
        return "a\0b" if options.answer == "nul" else "noted"


class Blocker:
    """A notifier that blocks the event loop, once or so that only SIGKILL helps."""

    name = "blocker"

    class Options(BaseModel):
        deaf: bool = False

    async def send(self, event: Event, options: Options, ctx: DeliveryContext) -> None:
        witness("blocks", event.task_id)
        if options.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)  # noqa: ASYNC251  # that is its fault


@hookimpl
def taskyard_handlers() -> list[Any]:
    return [value for module in (globals(), vars(oddities), vars(batches)) for value in module.values() if isinstance(value, Handler)]


@hookimpl
def taskyard_notifiers() -> list[Any]:
    return [Witness, Blocker]


@hookimpl
def taskyard_task_event(event: Event) -> None:
    witness("observed", event.type, event.task_id)
