"""Handlers that are interrupted, and do something about it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pydantic import BaseModel

from taskyard import Context, Interrupted, RetryLater, handler, hookimpl


class Do(BaseModel):
    what: str


def for_ever() -> None:
    """Longer than any test waits."""
    threading.Event().wait(600)


async def for_ever_in_loop() -> None:
    await asyncio.Event().wait()


@handler("i.sync", timeout=600, soft_timeout=300)
def in_process(payload: Do, ctx: Context) -> list[Any]:
    """Be interrupted in a process."""
    try:
        ctx.progress(0.1, "begins")
        for_ever()
    except Interrupted as first:
        if payload.what == "tidy":
            return [first.reason, ctx.cancelled()]
        if payload.what == "later":
            raise RetryLater("not done yet", delay=3, code="unfinished") from first
        if payload.what == "again":
            try:
                ctx.progress(0.5, "goes on")
                for_ever()
            except Interrupted as second:
                return [first.reason, second.reason]
        raise
    return []


@handler("i.async", timeout=600, soft_timeout=300)
async def in_loop(payload: Do, ctx: Context) -> list[Any]:
    """Be interrupted in the event loop."""
    try:
        ctx.progress(0.1, "begins")
        await for_ever_in_loop()
    except Interrupted as first:
        if payload.what == "tidy":
            return [first.reason, ctx.cancelled()]
        if payload.what == "later":
            raise RetryLater("not done yet", delay=3, code="unfinished") from first
        if payload.what == "again":
            try:
                ctx.progress(0.5, "goes on")
                await for_ever_in_loop()
            except Interrupted as second:
                return [first.reason, second.reason]
        raise
    return []


@handler("i.asyncio", timeout=600, soft_timeout=300)
async def in_asyncio(payload: Do, ctx: Context) -> list[Any]:
    """Be interrupted amid what asyncio has for cancellations, and go on with it."""
    seen: list[Any] = []

    async def part() -> None:
        try:
            await for_ever_in_loop()
        except asyncio.CancelledError as error:
            seen.append(type(error).__name__)
            raise

    try:
        async with asyncio.timeout(600), asyncio.TaskGroup() as tasks:
            tasks.create_task(part())
            if payload.what == "body":
                await for_ever_in_loop()
    except* Interrupted as stopped:
        seen += [one.reason for one in stopped.exceptions if isinstance(one, Interrupted)]
    task = asyncio.current_task()
    try:
        async with asyncio.timeout(0.01):
            await for_ever_in_loop()
    except TimeoutError:
        seen.append("asyncio's own")
    return [*seen, task is not None and task.cancelling()]


@handler("i.batch", timeout=600, soft_timeout=300, batch=10)
async def together(payloads: list[Do], contexts: list[Context]) -> list[str | Exception]:
    """Be interrupted with many tasks at hand."""
    try:
        await for_ever_in_loop()
    except Interrupted as first:
        if payloads[0].what == "through":
            raise
        return [first.reason for _ in payloads]
    return []


@hookimpl
def taskyard_handlers() -> list[Any]:
    return [in_process, in_loop, in_asyncio, together]
