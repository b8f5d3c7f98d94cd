"""How a run ends that raised: one rule, also for what comes in groups."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from taskyard import Context, Interrupted, InvalidHandler, InvalidInput, Retry, RetryLater, TaskCancelled, TaskFailed, UnknownTaskType, handler
from taskyard.outcomes import ending_of
from taskyard.testing import run_handler

DEFAULT = Retry(max_attempts=3)


def group(*parts: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("together", parts)


FAILED = TaskFailed("no", code="gone", page=7)
LATER = RetryLater("busy", delay=5)
MUCH_LATER = RetryLater("closed", delay=99, code="closed")
BUG = ValueError("bug")

# What was raised, and how it ends: the ending, the error's code, its text, and the delay that it asked for.
ENDINGS: list[tuple[BaseException, tuple[str, str | None, str | None, float | None]]] = [
    (FAILED, ("failed", "gone", "no", None)),
    (MUCH_LATER, ("later", "closed", "closed", 99)),
    (TaskCancelled(), ("cancelled", None, None, None)),
    (Interrupted("timeout"), ("interrupted", None, None, None)),
    (InvalidInput("no such child"), ("failed", "invalid-submission", "no such child", None)),
    (BUG, ("error", "ValueError", "bug", None)),
    (group(FAILED), ("failed", "gone", "no", None)),
    (group(group(group(MUCH_LATER))), ("later", "closed", "closed", 99)),
    (group(TaskCancelled()), ("cancelled", None, None, None)),
    (group(BUG), ("error", "ValueError", "bug", None)),
    (group(LATER, BUG, FAILED), ("failed", "gone", "no", None)),
    (group(BUG, TaskCancelled(), LATER), ("cancelled", None, None, None)),
    (group(LATER, group(BUG)), ("error", "ValueError", "bug", None)),
    (group(LATER, group(MUCH_LATER, RetryLater("soon"))), ("later", "closed", "closed", 99)),
    (group(FAILED, Interrupted("timeout")), ("interrupted", None, None, None)),
    (group(TaskFailed("first", code="a"), TaskFailed("second", code="b")), ("failed", "a", "first", None)),
    (group(BUG, ValueError("other")), ("error", "ValueError", "together (2 sub-exceptions): ValueError: bug; ValueError: other", None)),
    (group(BUG, OSError("disk")), ("error", "ExceptionGroup", "together (2 sub-exceptions): ValueError: bug; OSError: disk", None)),
]


@pytest.mark.parametrize(("raised", "expected"), ENDINGS, ids=[repr(raised) for raised, _ in ENDINGS])
def test_the_most_final_part_of_what_was_raised_decides(raised: BaseException, expected: tuple[str, str | None, str | None, float | None]) -> None:
    ending = ending_of(raised, DEFAULT)
    told = ending.error or {}
    assert (ending.ended, told.get("code"), told.get("message"), ending.delay) == expected


def test_details_of_a_failure_in_a_group_are_kept() -> None:
    assert ending_of(group(group(FAILED), BUG), DEFAULT).error == {"message": "no", "code": "gone", "page": 7}


def test_the_traceback_of_an_error_in_a_group_shows_where_the_group_comes_from() -> None:
    error = ending_of(group(BUG), DEFAULT).error
    assert error is not None
    assert "ValueError: bug" in error["traceback"]


@pytest.mark.parametrize(("asked", "ended"), [(True, "cancelled"), (False, "error")])
def test_a_cancellation_counts_as_one_only_if_the_run_was_asked_to_stop(asked: bool, ended: str) -> None:
    for raised in (asyncio.CancelledError(), group(asyncio.CancelledError())):
        assert ending_of(raised, DEFAULT, asked_to_stop=asked).ended == ended


class Unspeakable(TaskFailed):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_looked_at_is_told_all_the_same() -> None:
    for raised in (Unspeakable(), group(Unspeakable())):
        ending = ending_of(raised, DEFAULT)
        assert (ending.ended, ending.error is not None) == ("error", True)


# --- which errors are tried again ---

PICKY = Retry(max_attempts=3, on=(OSError, TimeoutError), never=PermissionError)


@pytest.mark.parametrize(
    ("raised", "ended"),
    [
        (OSError("busy"), "error"),
        (ConnectionResetError("gone"), "error"),
        (PermissionError("no"), "failed"),
        (ValueError("bug"), "failed"),
        (group(OSError(), OSError()), "error"),
        (group(OSError(), PermissionError()), "failed"),
        (RetryLater(), "later"),
        (TaskCancelled(), "cancelled"),
    ],
    ids=repr,
)
def test_a_policy_that_names_errors_retries_those_alone(raised: BaseException, ended: str) -> None:
    assert ending_of(raised, PICKY).ended == ended


@pytest.mark.parametrize(
    ("policy", "raised", "ended"),
    [
        (Retry(never=(KeyError, TypeError)), KeyError("x"), "failed"),
        (Retry(never=(KeyError, TypeError)), ValueError("x"), "error"),
        (Retry(on=KeyError), KeyError("x"), "error"),
        (Retry(on=KeyError), SystemExit(3), "failed"),
        (Retry(on=()), KeyError("x"), "failed"),
    ],
)
def test_one_class_or_several_can_be_named(policy: Retry, raised: BaseException, ended: str) -> None:
    assert ending_of(raised, policy).ended == ended


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"on": "ConnectionError"}, r"Retry\(on='ConnectionError'\): expected an exception class, or a tuple of them; 'ConnectionError' is none"),
        ({"on": [OSError]}, "expected an exception class, or a tuple of them"),
        ({"never": (OSError, 503)}, "503 is none"),
        ({"never": int}, "is none"),
        ({"on": RetryLater}, "leave RetryLater out; a handler that raises it has said itself"),
        ({"never": (TaskFailed,)}, "leave TaskFailed out"),
        ({"on": Interrupted}, "leave Interrupted out; a timeout counts as TimeoutError"),
    ],
)
def test_what_is_no_class_of_errors_is_refused_where_it_is_written(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidHandler, match=told):
        Retry(**arguments)


# --- as handlers meet it ---


class How(BaseModel):
    how: str


def part(how: str, ctx: Context) -> None:
    if how == "failed":
        raise TaskFailed("no", code="gone")
    if how == "later":
        raise RetryLater("busy", delay=99)
    ctx.raise_if_cancelled()


@handler("case.asyncio", retry=Retry(max_attempts=3))
async def in_task_group(payload: How, ctx: Context) -> int:
    """Raise in a task of a group."""

    async def one() -> None:
        part(payload.how, ctx)

    async with asyncio.TaskGroup() as outer:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(one())
        outer.create_task(asyncio.sleep(0))
    return 1


@handler("case.anyio", retry=Retry(max_attempts=3))
async def in_anyio_group(payload: How, ctx: Context) -> int:
    """Raise in a task of one of anyio's groups."""

    async def one() -> None:
        part(payload.how, ctx)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
    return 1


@pytest.mark.parametrize("case", [in_task_group, in_anyio_group], ids=lambda case: case.type)
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("failed", ("failed", "gone", None)),
        ("later", ("scheduled", "retry-later", 99.0)),
        ("cancel", ("cancelled", None, None)),
        ("well", ("succeeded", None, None)),
    ],
)
def test_what_a_task_of_a_group_raises_ends_the_run_as_if_the_handler_had(case: Any, how: str, expected: tuple[str, str | None, float | None]) -> None:
    run = run_handler(case, {"how": how}, cancelled=how == "cancel")
    assert (run.status, run.code, run.delay) == expected


def test_a_child_of_an_unknown_type_is_tried_again_only_where_a_broken_plugin_may_bring_it() -> None:
    unknown = ending_of(UnknownTaskType("a.b"), DEFAULT)
    perhaps = ending_of(UnknownTaskType("a.b", failed=["a"]), DEFAULT)
    assert [(one.ended, one.error and one.error["code"]) for one in (unknown, perhaps)] == [("failed", "invalid-submission"), ("error", "invalid-submission")]


def test_a_refused_child_is_told_with_its_faults_and_the_line_that_asked_for_it() -> None:
    def ask() -> None:
        raise InvalidInput("The task is not as expected.", [("/payload/n", "too small"), ("/priority", "too large")])

    with pytest.raises(InvalidInput) as raised:
        ask()
    error = ending_of(raised.value, DEFAULT).error or {}
    assert error["message"] == "The task is not as expected: /payload/n: too small; /priority: too large"
    assert error["problems"] == [["/payload/n", "too small"], ["/priority", "too large"]]
    assert error["where"].endswith("in ask")
    told_already = InvalidInput("P does not accept its own JSON: /payload/n: too small", [("/payload/n", "too small")])
    assert (ending_of(told_already, DEFAULT).error or {})["message"] == str(told_already)
