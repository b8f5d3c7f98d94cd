"""Tasks of a batch handler share calls, and each keeps a life of its own: the real worker and dispatcher as processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import RowMapping

from tests.stack import Stack, until

KINDS = pytest.mark.parametrize("type_", ["t.batch", "t.abatch"])


@contextmanager
def _paused(stack: Stack) -> Iterator[None]:
    """What is submitted in here is ready at once."""
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO queues (name, paused_at) VALUES ('default', now()) ON CONFLICT (name) DO UPDATE SET paused_at = now()")
    yield
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE queues SET paused_at = NULL")


def _make_known(stack: Stack, type_: str) -> None:
    """The dispatcher learns from a worker's beat, which it reads at each tick, that such tasks travel together."""
    until(lambda: stack.value("SELECT bool_or(pace ? :type) FROM workers", type=type_), what="the worker's word")
    for _ in range(2):
        stack.wait(stack.submit("t.aecho", delay=0.3))


def _together(stack: Stack, type_: str, first: dict[str, Any], others: int = 12, **fields: Any) -> tuple[UUID, list[UUID]]:
    """One task that stands at the head of its batch, and others that come with it."""
    _make_known(stack, type_)
    with _paused(stack):
        head = stack.submit(type_, first, priority=9, **fields)
        rest = stack.submit_all([(type_, {"word": str(number)}, fields) for number in range(others)])
    return head, rest


def _calls(stack: Stack, task: UUID) -> list[list[str]]:
    """The tasks of each call that a task was in."""
    return [[word for word in line[3:] if not word.startswith("fence-")] for line in stack.witnessed("batch", task)]


def _wait(stack: Stack, tasks: list[UUID]) -> list[RowMapping]:
    return [stack.wait(task, seconds=40) for task in tasks]


@KINDS
def test_tasks_share_calls_and_each_has_a_history_and_a_result_of_its_own(stack: Stack, type_: str) -> None:
    head, others = _together(stack, type_, {"word": "head"}, others=23)
    rows = _wait(stack, [head, *others])
    assert [(row["status"], row["result"]["word"]) for row in rows] == [("succeeded", word) for word in ["head", *map(str, range(23))]]
    assert {(row["attempt"], row["fence"], row["lost"]) for row in rows} == {(1, 1, 0)}
    assert 1 < max(row["result"]["size"] for row in rows) <= 10
    for task in (head, *others):
        assert stack.events(task) == ["task.submitted", "task.started", "task.succeeded"]
        assert len(_calls(stack, task)) == 1


@pytest.mark.one_pair
@KINDS
def test_one_alone_waits_for_nobody(stack: Stack, type_: str) -> None:
    row = stack.wait(stack.submit(type_, {"word": "alone"}))
    assert (row["status"], row["result"]) == ("succeeded", {"word": "alone", "size": 1})


@pytest.mark.one_pair
@KINDS
@pytest.mark.parametrize(
    ("does", "status", "attempt", "code"),
    [
        ("fail", "failed", 1, "refused"),
        ("later", "succeeded", 2, None),
        ("error", "failed", 3, "ValueError"),
        ("lie", "failed", 1, "invalid-result"),
        ("large", "failed", 1, "result-too-large"),
        ("child", "succeeded", 1, None),
    ],
)
def test_each_item_of_the_answer_decides_its_own_task(stack: Stack, type_: str, does: str, status: str, attempt: int, code: str | None) -> None:
    head, others = _together(stack, type_, {"does": does, "word": "w"})
    row = stack.wait(head)
    assert (row["status"], row["attempt"], (row["error"] or {}).get("code")) == (status, attempt, code)
    assert {(one["status"], one["attempt"]) for one in _wait(stack, others)} == {("succeeded", 1)}
    assert max(map(len, _calls(stack, head))) > 1, "it did come with others"
    if does == "child":
        assert row["progress"] == {"fraction": 0.5, "message": "w"}
        assert stack.value("SELECT payload ->> 'word' FROM tasks WHERE parent_id = :head", head=head) == "w"
        assert {one["progress"] for one in _wait(stack, others)} == {None}


@pytest.mark.one_pair
@KINDS
@pytest.mark.parametrize(("does", "code"), [("raise", "KeyError"), ("give up", "TaskCancelled")])
def test_what_a_call_raises_is_each_tasks_error_and_they_run_apart_when_tried_again(stack: Stack, type_: str, does: str, code: str) -> None:
    head, others = _together(stack, type_, {"does": does})
    row = stack.wait(head)
    assert (row["status"], row["attempt"], row["error"]["code"]) == ("failed", 3, code)
    rows = _wait(stack, others)
    assert {row["status"] for row in rows} == {"succeeded"}
    first, *later = _calls(stack, head)
    assert len(first) > 1
    assert set(map(len, later)) == {1}
    assert {str(row["id"]) for row in rows if row["attempt"] == 2} == set(first) - {str(head)}


@pytest.mark.one_pair
@KINDS
@pytest.mark.parametrize("does", ["too few", "no list"])
def test_the_wrong_number_of_answers_fails_the_tasks_of_that_call(stack: Stack, type_: str, does: str) -> None:
    head, others = _together(stack, type_, {"does": does})
    rows = _wait(stack, [head, *others])
    [call] = _calls(stack, head)
    assert len(call) > 1
    assert {str(row["id"]) for row in rows if row["status"] == "failed"} == set(call)
    assert {(row["error"]["code"], row["attempt"]) for row in rows if row["status"] == "failed"} == {("invalid-result", 1)}
    assert "expected one for each" in stack.task(head)["error"]["message"]


@pytest.mark.one_pair
@KINDS
def test_one_that_kills_its_process_is_worker_lost_and_its_neighbours_run_apart_and_succeed(stack: Stack, type_: str) -> None:
    head, others = _together(stack, type_, {"does": "die"})
    row = stack.wait(head, seconds=40)
    assert (row["status"], row["error"]["code"], row["lost"]) == ("failed", "worker-lost", 4)
    rows = _wait(stack, others)
    assert {(row["status"], row["attempt"]) for row in rows} == {("succeeded", 1)}
    first, *later = _calls(stack, head)
    assert len(first) > 1
    assert set(map(len, later)) == {1}
    assert {row["lost"] for row in rows if str(row["id"]) in first} <= ({1} if type_ == "t.batch" else {1, 2})


@pytest.mark.one_pair
@KINDS
def test_one_of_a_running_batch_that_is_cancelled_hears_of_it_and_the_others_go_on(stack: Stack, type_: str) -> None:
    head, others = _together(stack, type_, {"does": "nap", "seconds": 15})
    until(lambda: _calls(stack, head) or (type_ == "t.abatch" and stack.task(head)["status"] == "running"), what="its start")
    stack.cancel(head)
    assert stack.wait(head)["status"] == "cancelled"
    assert stack.events(head)[-2:] == ["task.cancel_requested", "task.cancelled"]
    [call] = _calls(stack, head)
    assert len(call) > 1
    assert {(row["status"], row["attempt"]) for row in _wait(stack, others)} == {("succeeded", 1)}


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.bspin", "t.abspin"])
def test_the_timeout_is_the_calls_and_each_of_its_tasks_has_run_out_of_time(stack: Stack, type_: str) -> None:
    head, others = _together(stack, type_, {}, others=5)
    assert {(row["status"], row["error"]["code"]) for row in _wait(stack, [head, *others])} == {("failed", "timeout")}
    assert stack.wait(stack.submit("t.batch", {"word": "on"}))["status"] == "succeeded"


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.bspin", "t.abspin"])
def test_a_call_whose_tasks_are_all_cancelled_is_made_to_end(stack: Stack, type_: str) -> None:
    head, others = _together(stack, type_, {}, others=5, timeout=60)
    stack.wait(head, "running")
    for task in (head, *others):
        stack.cancel(task)
    assert {row["status"] for row in _wait(stack, [head, *others])} == {"cancelled"}


@pytest.mark.one_pair
@KINDS
def test_one_whose_stored_payload_is_not_valid_is_left_out_of_the_call(stack: Stack, type_: str) -> None:
    _make_known(stack, type_)
    with _paused(stack):
        tasks = stack.submit_all([(type_, {"word": str(number)}, {}) for number in range(12)])
        with stack.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE tasks SET payload = '{\"word\": 5}', max_attempts = 3 WHERE id = %s", (tasks[0],))
    rows = _wait(stack, tasks)
    assert rows[0]["attempt"] == 1
    assert (rows[0]["status"], rows[0]["error"]["code"]) == ("failed", "invalid-payload")
    assert {row["status"] for row in rows[1:]} == {"succeeded"}
    assert _calls(stack, tasks[0]) == []


@pytest.mark.one_pair
def test_a_batch_handler_may_take_payloads_alone(stack: Stack) -> None:
    assert stack.wait(stack.submit("t.bare", {"word": "x"}))["result"] == "1: x"


@pytest.mark.one_pair
@KINDS
def test_a_batch_that_a_stopping_worker_hands_back_spends_no_attempt(own_stack: Stack, type_: str) -> None:
    stack = own_stack
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    head, others = _together(stack, type_, {"does": "nap", "seconds": 60}, others=5)
    stack.wait(head, "running")
    stack.stop("worker")
    assert (stack.task(head)["status"], stack.task(head)["attempt"]) in {("pending", 0), ("queued", 0)}
    assert stack.events(head)[-1] == "task.released"
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET payload = '{}' WHERE id = %s", (head,))
    stack.start("worker")
    assert {(row["status"], row["attempt"]) for row in _wait(stack, [head, *others])} == {("succeeded", 1)}
