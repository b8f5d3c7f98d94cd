"""Quick tasks travel together; none of them pays for another's slowness, death or cancel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from uuid import UUID

import pytest

from tests.stack import Stack, until

SMALL_STEPS = {"TASKYARD_WORKER__HEARTBEAT": "0.3", "TASKYARD_DISPATCH__TICK": "0.2"}


def _up(stack: Stack, type_: str, payload: Mapping[str, object]) -> Stack:
    """A worker whose dispatcher knows that a type is quick."""
    stack.env.update(SMALL_STEPS)
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    for _ in range(3):
        stack.wait(stack.submit(type_, payload))
    until(lambda: stack.value("SELECT bool_or(pace ? :type) FROM workers", type=type_), what=f"the pace of {type_}")
    # The dispatcher reads the workers' pace at each tick.
    for _ in range(2):
        stack.wait(stack.submit("t.aecho", delay=0.3))
    return stack


@contextmanager
def _paused(stack: Stack) -> Iterator[None]:
    """What is submitted in here is ready at once."""
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO queues (name, paused_at) VALUES ('default', now()) ON CONFLICT (name) DO UPDATE SET paused_at = now()")
    yield
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE queues SET paused_at = NULL")


def _releases(stack: Stack, tasks: list[UUID]) -> list[str]:
    statement = "SELECT array_agg(data ->> 'reason') FROM events WHERE type = 'task.released' AND task_id = ANY (:tasks)"
    return list(stack.value(statement, tasks=tasks) or [])


def test_what_waits_behind_a_slow_task_goes_back_in_line_without_spending_its_attempt(own_stack: Stack) -> None:
    own_stack.env["TASKYARD_WORKER__PROCESSES"] = "2"
    gate, opened = own_stack.gate(), own_stack.gate()
    opened.open()
    stack = _up(own_stack, "t.gated", opened.payload())
    with _paused(stack):
        slow = stack.submit("t.gated", gate.payload(), priority=9)
        quick = stack.submit_all([("t.gated", opened.payload(), {}) for _ in range(40)])
    ended = [stack.wait(task) for task in quick]
    assert stack.task(slow)["status"] == "running", "nobody waited for it"
    assert {(row["status"], row["attempt"], row["lost"]) for row in ended} == {("succeeded", 1, 0)}
    assert set(_releases(stack, quick)) == {"it had to wait for a slow task"}
    gate.open()
    assert stack.wait(slow)["status"] == "succeeded"
    begun = [line[-2] for line in stack.witnessed("gated")]
    assert len(begun) == len(set(begun)), "none was started twice"


@pytest.mark.one_pair
def test_a_task_that_kills_its_process_loses_none_of_those_that_came_with_it(own_stack: Stack) -> None:
    stack = _up(own_stack, "t.perhaps", {"word": "live"})
    with _paused(stack):
        deadly = stack.submit("t.perhaps", {"word": "die"}, priority=9)
        others = stack.submit_all([("t.perhaps", {"word": "live"}, {}) for _ in range(20)])
    ended = [stack.wait(task) for task in others]
    assert {(row["status"], row["attempt"], row["lost"]) for row in ended} == {("succeeded", 1, 0)}
    assert "its process ended before it began" in _releases(stack, others), "they did travel together"
    row = stack.wait(deadly)
    assert (row["status"], row["error"]["code"]) == ("failed", "worker-lost")


def _claimed_together(stack: Stack, tasks: list[UUID]) -> int:
    """How many tasks were claimed in one transaction, at most."""
    statement = (
        "SELECT max(claimed) FROM (SELECT count(*) AS claimed FROM events WHERE type = 'task.started' AND task_id = ANY (:tasks) GROUP BY xmin::text) AS each"
    )
    return int(stack.value(statement, tasks=tasks))


def _open_together(stack: Stack, tasks: list[UUID]) -> int:
    """How many tasks were claimed and not recorded as ended, at most, in the order of their history."""
    statement = "SELECT array_agg(type ORDER BY id) FROM events WHERE task_id = ANY (:tasks) AND type IN ('task.started', 'task.succeeded')"
    types: list[str] = stack.value(statement, tasks=tasks)
    return max(accumulate(1 if type_ == "task.started" else -1 for type_ in types))


@pytest.mark.parametrize(("type_", "together"), [("t.alone", False), ("t.echo", True)])
def test_a_handler_may_ask_that_its_tasks_travel_alone(own_stack: Stack, type_: str, together: bool) -> None:
    stack = _up(own_stack, type_, {})
    with _paused(stack):
        tasks = stack.submit_all([(type_, {}, {}) for _ in range(30)])
    for task in tasks:
        assert stack.wait(task)["status"] == "succeeded"
    if together:
        assert _claimed_together(stack, tasks) > 1
        return
    assert _claimed_together(stack, tasks) == 1
    # One process runs them one by one. The claim of the next one travels in the commit that records the end of the one before, and stands
    # before it there: a worker's row is locked before a task's.
    assert _open_together(stack, tasks) <= 2
    begun_and_ended = [line[1] for line in stack.witnessed("alone")][-2 * len(tasks) :]
    assert begun_and_ended == ["begins", "ends"] * len(tasks)
