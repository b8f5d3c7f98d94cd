"""What the testing kit says of a run is what a worker would record: of the tasks that it submits, of what it raises, and in a running loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from taskyard import Context, Retry, handler
from taskyard.testing import arun_batch, arun_handler, run_batch, run_handler


class Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int = 1


class How(BaseModel):
    how: str


@handler("kit.child", aliases=["kit.old-child"])
def child(payload: Number, ctx: Context) -> int:
    """Give the number back."""
    return payload.n


#: What a parent asks for, by name. Options that type checkers refuse are typed as anything.
ODD: dict[str, Any] = {"unknown": {"prio": 3}, "wrong": {"priority": 30}}


@handler("kit.parent", retry=Retry(max_attempts=3))
def parent(payload: How, ctx: Context) -> int:
    """Submit a task."""
    match payload.how:
        case "payload":
            ctx.submit("kit.child", {"zz": 1})
        case "type":
            ctx.submit("kit.chil", {})
        case "elsewhere":
            ctx.submit("other.thing", {"any": 1}, priority=3)
        case "installed":
            ctx.submit("demo.echo", {"message": 1})
        case "fine":
            ctx.submit(child, Number(n=2), priority=3)
            ctx.submit("kit.old-child", {})
        case "exit":
            raise SystemExit(3)
        case "cancel":
            raise asyncio.CancelledError
        case "fail":
            pytest.fail("a fake of the test was called")
        case how:
            ctx.submit(child, Number(), **ODD[how])
    return 1


@pytest.mark.parametrize("how", ["payload", "type", "unknown", "wrong", "elsewhere", "installed"])
def test_a_task_that_a_worker_would_refuse_to_submit_fails_the_run_as_there(how: str) -> None:
    run = run_handler(parent, {"how": how})
    assert (run.status, run.code, run.submissions) == ("failed", "invalid-submission", [])


def test_an_unknown_type_is_told_with_the_nearest_one() -> None:
    assert "Did you mean 'kit.child'" in str(run_handler(parent, {"how": "type"}).error)


def test_a_task_that_can_be_submitted_is_among_the_submissions() -> None:
    run = run_handler(parent, {"how": "fine"})
    assert [(one.type, one.payload, one.options) for one in run.submissions] == [("kit.child", {"n": 2}, {"priority": 3}), ("kit.old-child", {}, {})]
    elsewhere = run_handler(parent, {"how": "elsewhere"}, other_types=["other.thing"])
    assert (elsewhere.status, [one.type for one in elsewhere.submissions]) == ("succeeded", ["other.thing"])


@pytest.mark.parametrize(("how", "code"), [("exit", "SystemExit"), ("cancel", "CancelledError")])
def test_what_is_no_exception_ends_the_run_as_in_a_worker(how: str, code: str) -> None:
    run = run_handler(parent, {"how": how})
    assert (run.status, run.code) == ("scheduled", code)


def test_a_failure_of_the_test_itself_is_not_taken_for_the_handlers() -> None:
    with pytest.raises(pytest.fail.Exception, match="a fake of the test"):
        run_handler(parent, {"how": "fail"})


# --- event loops ----------------------------------------------------------------------------------------------------------


@handler("kit.loop")
async def in_loop(payload: Number) -> int:
    """Say in which loop this is."""
    return id(asyncio.get_running_loop())


@handler("kit.loops", batch=3)
async def in_loops(payloads: list[Number]) -> list[int]:
    """Say in which loop this is, for each."""
    return [id(asyncio.get_running_loop())] * len(payloads)


@handler("kit.process")
def in_process(payload: Number) -> bool:
    """Is there a loop?"""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_in_a_running_loop_the_blocking_form_says_what_to_use_and_the_other_form_runs_there() -> None:
    async def test() -> None:
        with pytest.raises(RuntimeError, match=r"An event loop runs here\. In an async test, run kit\.loop with `await arun_handler"):
            run_handler(in_loop, {})
        with pytest.raises(RuntimeError, match="await arun_batch"):
            run_batch(in_loops, [{}])
        here = id(asyncio.get_running_loop())
        assert (await arun_handler(in_loop, {})).result == here
        assert [run.result for run in await arun_batch(in_loops, [{}, {}])] == [here, here]
        assert (await arun_handler(in_process, {})).result is False
        assert run_handler(in_process, {}).status == "succeeded"
        slow = await arun_handler(never, {}, timeout=0.01)
        assert (slow.status, slow.code) == ("failed", "timeout")

    asyncio.run(test())


@handler("kit.never")
async def never(payload: Number) -> None:
    """Wait for ever."""
    await asyncio.Event().wait()
