"""Tasks that handlers submit: all of them with their parent's success, none of them otherwise, and never twice."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from taskyard import lifecycle
from tests.stack import QUICK, Stack, until


def _children(stack: Stack, parent: UUID) -> list[str]:
    return sorted(stack.value("SELECT array_agg(id::text) FROM tasks WHERE parent_id = :parent", parent=parent) or [])


def _told(stack: Stack, parent: UUID) -> list[dict[str, Any]]:
    """What the parent's last event says was not submitted."""
    found: list[dict[str, Any]] = stack.value("SELECT data -> 'not_submitted' FROM events WHERE task_id = :parent AND type = 'task.succeeded'", parent=parent)
    return found


def test_children_are_what_they_were_when_they_were_asked_for(stack: Stack) -> None:
    parent = stack.submit("t.family", {"children": 3})
    row = stack.wait(parent)
    assert (row["status"], row["parent_id"]) == ("succeeded", None)
    assert _children(stack, parent) == sorted(row["result"])
    assert [stack.task(UUID(child))["payload"] for child in row["result"]] == [{"word": "0"}, {"word": "1"}, {"word": "2"}]
    for child in row["result"]:
        assert stack.wait(UUID(child))["status"] == "succeeded"


@pytest.mark.one_pair
def test_a_retried_parent_has_the_children_of_the_run_that_succeeded_and_no_others(stack: Stack) -> None:
    parent = stack.submit("t.family", {"fails": 2})
    row = stack.wait(parent)
    assert (row["status"], row["attempt"]) == ("succeeded", 3)
    assert _children(stack, parent) == sorted(row["result"])


@pytest.mark.one_pair
def test_a_parent_that_failed_has_no_children_until_a_persons_retry_succeeds(stack: Stack) -> None:
    parent = stack.submit("t.family", {"fails": 1}, max_attempts=1)
    assert stack.wait(parent)["status"] == "failed"
    assert _children(stack, parent) == []
    with stack.engine.begin() as connection:
        lifecycle.retry(connection, "default", parent)
    row = stack.wait(parent, "succeeded")
    assert _children(stack, parent) == sorted(row["result"])


@pytest.mark.one_pair
def test_what_can_not_be_submitted_is_an_error_in_the_handler_which_may_do_without_it(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.family", {"type": "t.ecco"}))
    assert (row["status"], row["attempt"], row["error"]["code"]) == ("failed", 1, "invalid-submission")
    assert "Did you mean 't.echo'" in row["error"]["message"]
    assert row["error"]["problems"] == [["/type", "unknown task type"]]
    row = stack.wait(stack.submit("t.family", {"type": "t.ecco", "catches": True}))
    assert row["status"] == "succeeded"
    assert "'t.ecco'" in row["result"][0]


@pytest.mark.one_pair
def test_a_live_task_with_its_unique_key_stands_for_a_child_and_the_parents_history_says_so(stack: Stack) -> None:
    holder = stack.submit("t.echo", unique_key="family 1", delay=3600)
    parent = stack.submit("t.family", {"unique_key": "family 1"})
    row = stack.wait(parent)
    assert row["status"] == "succeeded"
    assert _children(stack, parent) == []
    assert [(told["id"], told["unique_key"], told["task_id"]) for told in _told(stack, parent)] == [(id_, "family 1", str(holder)) for id_ in row["result"]]
    stack.cancel(holder)


@pytest.mark.one_pair
def test_of_two_children_with_one_unique_key_one_is_submitted(stack: Stack) -> None:
    parent = stack.submit("t.family", {"unique_key": "family 2"})
    row = stack.wait(parent)
    [made] = _children(stack, parent)
    [told] = _told(stack, parent)
    assert {made, told["id"]} == set(row["result"])
    assert told["task_id"] == made


@pytest.mark.one_pair
@pytest.mark.parametrize("point", ["handler.returned=exit", "run.ended=exit", "ledger.uncommitted=exit@5", "finish.committed=exit", "ack.unsent=exit"])
def test_wherever_a_worker_dies_the_children_are_there_once(own_stack: Stack, point: str) -> None:
    stack = own_stack
    stack.env.update(QUICK, TASKYARD_WORKER__HEARTBEAT="1")
    stack.start("dispatcher")
    worker = stack.start("dying", "taskyard", "worker", env={"TASKYARD_FAILPOINTS": point})
    stack.ready()
    parent = stack.submit("t.family", {"children": 3})
    if point.startswith("handler.returned"):
        # It ends a process that runs handlers, each time that one returns; the worker lives on.
        until(lambda: len(stack.witnessed("family", parent)) >= 2, 60, "a second run")
        stack.stop("dying")
    else:
        until(lambda: worker.poll() is not None, 60, "its death")
        del stack.processes["dying"]
    stack.start("worker")
    row = stack.wait(parent, "succeeded", seconds=60)
    assert _children(stack, parent) == sorted(row["result"])
    for child in row["result"]:
        assert stack.wait(UUID(child), seconds=60)["status"] == "succeeded"
    assert _children(stack, parent) == sorted(row["result"])
