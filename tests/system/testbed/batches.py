"""Batch handlers for whole-system tests. What each task of a batch asks for is in its payload."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from taskyard import Context, Retry, RetryLater, TaskCancelled, TaskFailed, handler


class Item(BaseModel):
    does: str = "say"
    word: str = ""
    seconds: float = 0.0


class Said(BaseModel):
    word: str
    size: int


def _witness(contexts: list[Context]) -> None:
    """One line a call: how many came together, and who."""
    with Path(os.environ["TESTBED_LOG"]).open("a") as log:
        names = " ".join(f"{context.task_id} fence-{context.task_id}-{context.fence}" for context in contexts)
        log.write(f"{time.time():.6f} batch size={len(contexts)} {names}\n")


def _child(item: Item, context: Context) -> Said:
    context.progress(0.5, item.word)
    context.submit("t.echo", {"word": item.word})
    return Said(word=item.word, size=0)


def _ended(item: Item, context: Context) -> Said | Exception:
    until = time.monotonic() + item.seconds
    while time.monotonic() < until:
        if context.cancelled():
            return TaskCancelled()
        time.sleep(0.02)
    return Said(word=item.word, size=0)


#: What becomes of one task.
ITEMS: Mapping[str, Callable[[Item, Context], Any]] = {
    "say": lambda item, _: Said(word=item.word, size=0),
    "fail": lambda item, _: TaskFailed("no", code="refused", hint=item.word),
    "later": lambda item, ctx: RetryLater(delay=0.05) if ctx.attempt < 2 else Said(word=item.word, size=ctx.attempt),
    "error": lambda item, _: ValueError(item.word),
    "lie": lambda item, _: "not what was promised",
    "large": lambda item, _: Said(word="x" * 2_000_000, size=0),
    "child": _child,
    "nap": _ended,
}
#: What becomes of the whole call.
CALLS: Mapping[str, Callable[[], Any]] = {
    "raise": lambda: (_ for _ in ()).throw(KeyError("the whole call")),
    "give up": lambda: (_ for _ in ()).throw(TaskCancelled()),
    "die": lambda: os._exit(9),
}


def _answer(items: list[Item], contexts: list[Context]) -> Any:
    _witness(contexts)
    for item in items:
        if item.does in CALLS:
            CALLS[item.does]()
    if any(item.does == "too few" for item in items):
        return [Said(word="x", size=0)] * (len(items) - 1)
    if any(item.does == "no list" for item in items):
        return {"0": Said(word="x", size=0)}
    answers = [ITEMS.get(item.does, ITEMS["say"])(item, context) for item, context in zip(items, contexts, strict=True)]
    return [answer.model_copy(update={"size": len(items)}) if isinstance(answer, Said) and not answer.size else answer for answer in answers]


RETRY = Retry(max_attempts=3, base=0.05, jitter=0)


@handler("t.batch", batch=10, retry=RETRY, timeout=20)
def batch(items: list[Item], contexts: list[Context]) -> list[Said | Exception]:
    """Do what each asks for."""
    answers: list[Said | Exception] = _answer(items, contexts)
    return answers


@handler("t.abatch", batch=10, retry=RETRY, timeout=20)
async def abatch(items: list[Item], contexts: list[Context]) -> list[Said | Exception]:
    """Do what each asks for, in the event loop."""
    waits = [item.seconds for item in items if item.does == "nap"]
    until = time.monotonic() + max(waits, default=0.0)
    while time.monotonic() < until and not any(context.cancelled() for context in contexts):  # noqa: ASYNC110  # as a handler may
        await asyncio.sleep(0.02)
    naps = [item.model_copy(update={"seconds": 0.1}) if item.does == "nap" else item for item in items]
    answers: list[Said | Exception] = _answer(naps, contexts)
    return answers


@handler("t.bare", batch=3)
def bare(items: list[Item]) -> list[str]:
    """Take no contexts."""
    return [f"{len(items)}: {item.word}" for item in items]


@handler("t.bspin", batch=5, timeout=1)
def bspin(items: list[Item]) -> list[None]:
    """Never end."""
    while True:
        pass


@handler("t.abspin", batch=5, timeout=1)
async def abspin(items: list[Item]) -> list[None]:
    """Never end, and block nobody."""
    await asyncio.Event().wait()
    return []
