"""Tasks come in by the hundred in one statement, once each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from taskyard import lifecycle

from .life import Life, begin, counts, new


def test_a_task_keeps_all_that_was_submitted(life: Life) -> None:
    parent = uuid4()
    task = life.submit(
        payload={"deep": [1, None, "ü"]},
        priority=9,
        queue="io",
        lane="async",
        tags=("a", "b c"),
        metadata={"k": {"v": 1}},
        unique_key="u",
        parent_id=parent,
        namespace="team",
        timeout=1.5,
        max_attempts=7,
    )
    row = life.row(task)
    assert (row["payload"], row["tags"], row["metadata"]) == ({"deep": [1, None, "ü"]}, ["a", "b c"], {"k": {"v": 1}})
    assert (row["priority"], row["queue"], row["lane"], row["unique_key"], row["parent_id"]) == (9, "io", "async", "u", parent)
    assert (row["namespace"], row["timeout"], row["max_attempts"], row["status"]) == ("team", 1.5, 7, "pending")
    assert (counts(row), row["version"], row["in_line"], row["ended"]) == ((0, 0, 0), 1, True, None)
    assert [(e["type"], e["attempt"], e["data"], e["namespace"]) for e in life.events(task)] == [("task.submitted", 0, {}, "team")]


@pytest.mark.parametrize("payload", [None, [], "", 0, False, "null"])
def test_every_json_value_is_a_payload(life: Life, payload: object) -> None:
    assert life.row(life.submit(payload=payload))["payload"] == payload


def test_run_at_ahead_or_a_delay_schedules(life: Life) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    planned, delayed = life.row(life.submit(run_at=later.isoformat())), life.row(life.submit(delay=3600.0))
    for row in (planned, delayed):
        assert (row["status"], row["in_line"]) == ("scheduled", False)
        assert row["next_run_at"] == row["run_at"]
    assert planned["run_at"] == later
    assert timedelta(minutes=59) < delayed["run_at"] - delayed["created_at"] <= timedelta(hours=1)


@pytest.mark.parametrize("when", [{"run_at": "2001-01-01T00:00:00Z"}, {"delay": 0.0}])
def test_a_moment_that_has_passed_is_now(life: Life, when: dict[str, object]) -> None:
    row = life.row(life.submit(**when))
    assert (row["status"], row["next_run_at"]) == ("pending", None)


def test_a_thousand_tasks_share_a_statement(life: Life) -> None:
    tasks = [new(payload=n) for n in range(1000)]
    with life.engine.begin() as connection:
        rows = lifecycle.submit(connection, tasks)
    assert [life.row(task.id)["payload"] for task in tasks[::333]] == [0, 333, 666, 999]
    assert len(rows) == 1000
    assert life.column("SELECT count(*) FROM events WHERE type = 'task.submitted'") == [1000]


def test_no_tasks_are_no_error(life: Life) -> None:
    with life.engine.begin() as connection:
        assert lifecycle.submit(connection, []) == {}


def test_an_id_that_is_there_already_is_left_alone(life: Life) -> None:
    first = new(payload="first")
    with life.engine.begin() as connection:
        lifecycle.submit(connection, [first])
    with life.engine.begin() as connection:
        assert lifecycle.submit(connection, [new(id=first.id, payload="second")]) == {}
    assert life.row(first.id)["payload"] == "first"
    assert life.event_types(first.id) == ["submitted"]


def test_one_live_task_has_a_unique_key_in_a_namespace(life: Life) -> None:
    first = life.submit(unique_key="k")
    twin, other, foreign = new(unique_key="k"), new(unique_key="l"), new(unique_key="k", namespace="team")
    with life.engine.begin() as connection:
        assert set(lifecycle.submit(connection, [twin, other, foreign])) == {other.id, foreign.id}
        assert lifecycle.live_with_unique_key(connection, "default", "k") == first
        assert lifecycle.live_with_unique_key(connection, "team", "k") == foreign.id
        assert lifecycle.live_with_unique_key(connection, "default", "m") is None
    assert life.events(twin.id) == []


def test_of_two_with_one_unique_key_in_a_statement_one_is_taken(life: Life) -> None:
    twins = [new(unique_key="k"), new(unique_key="k")]
    with life.engine.begin() as connection:
        assert len(lifecycle.submit(connection, twins)) == 1


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "expired"])
def test_an_ended_task_gives_its_unique_key_back(life: Life, status: str) -> None:
    life.in_status(status, unique_key="k")
    assert life.status(life.submit(unique_key="k")) == "pending"


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued", "running", "held"])
def test_a_live_task_keeps_its_unique_key(life: Life, status: str) -> None:
    life.in_status(status, unique_key="k")
    with life.engine.begin() as connection:
        assert lifecycle.submit(connection, [new(unique_key="k")]) == {}


def test_submits_of_the_same_keys_in_other_orders_do_not_deadlock(life: Life) -> None:
    """The second waits for ``a`` before it has taken ``b``, so the first can go on to ``b``."""
    with begin(life.engine) as first, ThreadPoolExecutor(1) as pool:
        lifecycle.submit(first, [new(unique_key="a")])

        def second() -> int:
            with begin(life.engine) as connection, connection.begin():
                return len(lifecycle.submit(connection, [new(unique_key="b"), new(unique_key="a")]))

        waiting = pool.submit(second)
        life.await_lock(waiting)
        assert len(lifecycle.submit(first, [new(unique_key="b")])) == 1
        first.commit()
        assert waiting.result() == 0


@pytest.mark.parametrize("wrong", [{"priority": 10}, {"priority": -1}, {"lane": "fast"}, {"timeout": 0.0}, {"max_attempts": 0}])
def test_postgres_refuses_what_validation_let_through(life: Life, wrong: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        life.submit(**wrong)
