"""What handlers log is kept with their task: the real worker and dispatcher as processes."""

from __future__ import annotations

import pytest
from sqlalchemy import RowMapping, text

from taskyard import logline
from tests.stack import Stack, until


def lines(stack: Stack, task: object) -> list[RowMapping]:
    with stack.engine.connect() as connection:
        return list(connection.execute(text("SELECT * FROM task_logs WHERE task_id = :id ORDER BY id"), {"id": task}).mappings())


def dropped(stack: Stack, task: object) -> int:
    return int(stack.value("SELECT dropped FROM task_log_totals WHERE task_id = :id", id=task))


@pytest.mark.parametrize("type_", ["t.says", "t.asays"])
def test_lines_are_kept_with_level_message_fields_and_run_masked_and_in_order(stack: Stack, type_: str) -> None:
    task = stack.submit(type_, {"lines": 300})
    row = stack.wait(task)
    kept = lines(stack, task)
    assert [line["level"] for line in kept[:4]] == ["info", "warning", "error", "info"], "debug is below log.level"
    hello, odd, broke = kept[:3]
    assert (hello["message"], hello["fields"]) == ("hello", {"name": "Ada", "password": "***", "nested": {"n": [1, 2.5, None]}})
    assert odd["message"] == "odd\\0 \\ud800 line"
    assert odd["fields"]["where"] == "postgresql://me:***@host/db"
    assert odd["fields"]["made_of"] == "<class 'object'>"
    assert (broke["message"], broke["fields"]["exception"].splitlines()[-1]) == ("it broke", "ValueError: invalid literal for int() with base 10: 'nothing'")
    assert [line["fields"]["n"] for line in kept[3:]] == list(range(300))
    assert {(line["attempt"], line["fence"]) for line in kept} == {(1, 1)}
    assert row["started_at"] <= kept[0]["time"] <= kept[-1]["time"] <= row["finished_at"]
    assert dropped(stack, task) == 0
    ended = stack.value("SELECT id FROM events WHERE task_id = :id AND type = 'task.succeeded'", id=task)
    assert kept[-1]["id"] < ended, "a stream of the task ends with its end"


def test_lines_are_there_while_the_handler_runs(stack: Stack) -> None:
    task = stack.submit("t.says", {"seconds": 60})
    until(lambda: len(lines(stack, task)) == 3)
    assert stack.task(task)["status"] == "running"
    stack.cancel(task)
    stack.wait(task)


def test_of_too_many_lines_the_newest_are_kept_and_the_others_counted(stack: Stack) -> None:
    task = stack.submit("t.says", {"lines": 2000, "size": 1000})
    assert stack.wait(task)["status"] == "succeeded"
    kept = lines(stack, task)
    assert [line["fields"]["n"] for line in kept] == list(range(2000 - len(kept), 2000))
    assert dropped(stack, task) == 3 + 2000 - len(kept)
    size = sum(line["bytes"] for line in kept)
    assert logline.LIMIT - 1200 < size <= logline.LIMIT
    assert stack.value("SELECT bytes FROM task_log_totals WHERE task_id = :id", id=task) == size


@pytest.mark.one_pair
def test_a_handler_that_logs_in_a_tight_loop_is_ended_in_time_and_holds_up_nobody(stack: Stack) -> None:
    task = stack.submit("t.babbles")
    stack.wait(task, "running")
    while stack.task(task)["status"] == "running":
        assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    row = stack.wait(task)
    assert (row["status"], row["error"]["code"]) == ("failed", "timeout")
    kept = lines(stack, task)
    numbers = [line["fields"]["n"] for line in kept]
    assert numbers == sorted(numbers)
    assert numbers[-1] == dropped(stack, task) + len(kept), "each line was kept or counted"
    assert sum(line["bytes"] for line in kept) <= logline.LIMIT


def test_a_task_that_logs_nothing_has_no_rows(stack: Stack) -> None:
    task = stack.submit("t.echo")
    stack.wait(task)
    assert stack.value("SELECT count(*) FROM task_log_totals WHERE task_id = :id", id=task) == 0
