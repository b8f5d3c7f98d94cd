"""update changes what a person may change, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from taskyard import lifecycle
from taskyard.errors import IllegalTransition

from .life import Life, begin

LATER = datetime(2100, 1, 1, tzinfo=UTC)
OWN = {"status", "run_at", "next_run_at", "queued_at", "in_line", "updated_at", "version"}


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("priority", 9, 9),
        ("priority", 0, 0),
        ("tags", ["a", "b"], ["a", "b"]),
        ("tags", [], []),
        ("metadata", {"a": [1]}, {"a": [1]}),
        ("expires_at", LATER.isoformat(), LATER),
        ("expires_at", None, None),
    ],
)
def test_a_field_changes_alone(life: Life, field: str, value: Any, stored: Any) -> None:
    task = life.submit(tags=("x",), metadata={"m": 1}, expires_at="2999-01-01T00:00:00Z")
    before = life.row(task)
    answer = life.person("update", task, {field: value})
    after = life.row(task)
    assert after[field] == answer[field] == stored
    assert {name for name in after if after[name] != before[name]} <= {field, "updated_at", "version"}
    assert after["version"] == before["version"] + 1
    event = life.last_event(task)
    assert (event["type"], event["data"]) == ("task.updated", {field: value})


@pytest.mark.parametrize(
    ("status", "ahead", "now"),
    [("scheduled", "scheduled", "pending"), ("pending", "scheduled", "pending"), ("queued", "scheduled", "queued"), ("held", "held", "held")],
)
def test_run_at_moves_a_task_between_schedule_and_line(life: Life, status: str, ahead: str, now: str) -> None:
    task = life.in_status(status)
    life.person("update", task, {"run_at": LATER.isoformat()})
    row = life.row(task)
    assert (row["status"], row["run_at"]) == (ahead, LATER)
    assert row["next_run_at"] == (LATER if ahead == "scheduled" else None)
    assert (row["queued_at"] is None) is (ahead != "queued")
    for moment in ("2001-01-01T00:00:00Z", None):
        other = life.in_status(status)
        life.person("update", other, {"run_at": moment})
        assert (life.status(other), life.row(other)["next_run_at"]) == (now, None)


def test_a_task_that_backs_off_may_be_sent_to_work_at_once(life: Life) -> None:
    task = life.running()
    life.end(task, "retry", delay=1000.0)
    life.person("update", task, {"run_at": None})
    assert (life.status(task), life.row(task)["in_line"]) == ("pending", True)


def test_a_parked_task_may_be_put_off_or_called_back(life: Life) -> None:
    for moment, status in ((LATER.isoformat(), "scheduled"), (None, "pending")):
        task = life.queued(type="demo.unknown")
        life.claim(life.worker(), task)
        life.person("update", task, {"run_at": moment})
        assert (life.status(task), life.row(task)["in_line"]) == (status, status == "pending")


def test_other_changes_leave_the_schedule_alone(life: Life) -> None:
    task = life.submit(run_at=LATER.isoformat())
    life.person("update", task, {"priority": 1, "tags": ["a"]})
    row = life.row(task)
    assert (row["status"], row["run_at"], row["next_run_at"]) == ("scheduled", LATER, LATER)


def test_tags_and_metadata_of_a_running_task_may_change(life: Life) -> None:
    task = life.running()
    life.person("update", task, {"tags": ["a"], "metadata": {"k": 1}})
    assert (life.status(task), life.row(task)["tags"], life.row(task)["metadata"]) == ("running", ["a"], {"k": 1})


@pytest.mark.parametrize("change", [{"priority": 1}, {"run_at": None}, {"expires_at": None}, {"tags": [], "priority": 1}])
def test_what_only_matters_before_the_run_may_not_change_in_it(life: Life, change: dict[str, Any]) -> None:
    task = life.running()
    with pytest.raises(IllegalTransition):
        life.person("update", task, change)
    assert life.event_types(task) == ["submitted", "started"]


def test_a_new_priority_decides_the_order(life: Life) -> None:
    first, second = life.submit(), life.submit()
    life.person("update", second, {"priority": 6})
    assert [hint.id for hint in life.dispatch()] == [second, first]


def test_two_updates_at_once_lose_nothing(life: Life) -> None:
    task = life.submit()
    with begin(life.engine) as first, ThreadPoolExecutor(1) as pool:
        lifecycle.update(first, "default", task, {"run_at": LATER.isoformat()})
        second = pool.submit(life.person, "update", task, {"tags": ["a"]})
        life.await_lock(second)
        first.commit()
        second.result()
    row = life.row(task)
    assert (row["run_at"], row["next_run_at"], row["tags"], row["version"]) == (LATER, LATER, ["a"], 3)
