"""A plugin's tests see the timeouts that a worker would make: what is raised, how often, and what becomes of it."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from taskyard import Context, Interrupted, Retry, RetryLater, handler
from taskyard.testing import run_batch, run_handler

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])
LATER = Retry(max_attempts=2, base=8)


class Do(BaseModel):
    what: str = ""


def answer(what: str, first: Interrupted) -> list[str] | None:
    """What a handler does about its first interruption; None: it goes on."""
    if what == "tidy":
        return [first.reason]
    if what == "later":
        raise RetryLater(delay=3, code="unfinished") from first
    if what == "goes on":
        return None
    raise first


@handler("k.sync", timeout=6, soft_timeout=3, retry=LATER)
def in_process(payload: Do, ctx: Context) -> list[str]:
    """Be interrupted."""
    try:
        threading.Event().wait(60)
    except Interrupted as first:
        if (done := answer(payload.what, first)) is not None:
            return done
    try:
        threading.Event().wait(60)
    except Interrupted as second:
        return [second.reason]
    return []


@handler("k.async", timeout=6, soft_timeout=3, retry=LATER)
async def in_loop(payload: Do, ctx: Context) -> list[str]:
    """Be interrupted."""
    try:
        await asyncio.Event().wait()
    except Interrupted as first:
        if (done := answer(payload.what, first)) is not None:
            return done
    try:
        await asyncio.Event().wait()
    except Interrupted as second:
        return [second.reason]
    return []


HANDLERS: dict[str, Any] = {"sync": in_process, "async": in_loop}


@KINDS
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("tidy", ("succeeded", ["soft-timeout"], None, None)),
        ("later", ("scheduled", None, "unfinished", 3)),
        ("through", ("scheduled", None, "timeout", 8)),
        ("goes on", ("succeeded", ["timeout"], None, None)),
    ],
)
def test_a_soft_timeout_comes_first_and_what_is_made_of_it_counts(kind: str, what: str, expected: tuple[str, Any, str | None, float | None]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    run = run_handler(HANDLERS[kind], {"what": what}, timeout=0.2)
    assert (run.status, run.result, run.code, run.delay) == expected
    assert signal.getsignal(signal.SIGALRM) == before


@KINDS
def test_a_run_that_has_no_soft_timeout_is_interrupted_at_its_timeout(kind: str) -> None:
    hard = HANDLERS[kind].__class__(**{**vars(HANDLERS[kind]), "soft_timeout": None, "retry": Retry(max_attempts=2, never=TimeoutError)})
    run = run_handler(hard, {"what": "through"}, timeout=0.05)
    assert (run.status, run.code, str(run.error)) == ("failed", "timeout", "took longer than 0.05 s")


def test_a_soft_timeout_that_may_not_be_tried_again_fails_the_run() -> None:
    picky = handler("k.picky", timeout=6, soft_timeout=3, retry=Retry(on=ConnectionError))(in_loop.function)
    run = run_handler(picky, {"what": "through"}, timeout=0.1)
    assert (run.status, run.code, run.delay) == ("failed", "timeout", None)


def test_a_context_has_both_deadlines() -> None:
    seen: list[Context] = []

    @handler("k.look", timeout=60, soft_timeout=45)
    def look(payload: Do, ctx: Context) -> None:
        """Look."""
        seen.append(ctx)

    run_handler(look, {}, timeout=20)
    [ctx] = seen
    assert ctx.deadline is not None
    assert ctx.soft_deadline is not None
    assert (ctx.deadline - ctx.soft_deadline).total_seconds() == 5


@handler("k.batch", timeout=6, soft_timeout=3, batch=10)
async def together(payloads: list[Do]) -> list[str | Exception]:
    """Be interrupted with many."""
    try:
        await asyncio.Event().wait()
    except Interrupted as first:
        return [first.reason for _ in payloads]
    return []


def test_a_batch_is_interrupted_together() -> None:
    assert [run.result for run in run_batch(together, [{}, {}], timeout=0.1)] == ["soft-timeout"] * 2
