"""A hint is worth one run of the best task in its line, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import RowMapping

from taskyard import lifecycle

from .life import PARK_DELAY, Life, counts


def by_status(rows: Sequence[RowMapping], status: str) -> list[Any]:
    return [row["id"] for row in rows if row["status"] == status]


@pytest.mark.parametrize("waits", ["pending", "queued"])
def test_a_more_urgent_task_runs_and_the_hints_own_steps_back(life: Life, waits: str) -> None:
    hinted = life.queued(priority=1)
    urgent = life.in_status(waits, priority=9)
    rows = life.claim(life.worker(), hinted)
    assert (by_status(rows, "running"), by_status(rows, "pending")) == ([urgent], [hinted])
    assert (counts(life.row(urgent)), life.event_types(urgent)) == ((1, 1, 0), ["submitted", "started"])
    stepped = life.row(hinted)
    assert (counts(stepped), stepped["queued_at"], stepped["in_line"], stepped["worker_id"]) == ((0, 0, 0), None, True, None)
    assert life.event_types(hinted) == ["submitted"]
    assert next(row["payload"] for row in rows if row["id"] == hinted) is None


def test_several_hints_run_the_best_of_all(life: Life) -> None:
    hinted = [life.queued(priority=priority) for priority in (2, 4, 6)]
    urgent = life.submit(priority=5)
    rows = life.claim(life.worker(), *hinted)
    assert by_status(rows, "running") == [hinted[2], urgent, hinted[1]]
    assert by_status(rows, "pending") == [hinted[0]]


def test_an_equally_urgent_older_task_does_not_push_the_hinted_one_away(life: Life) -> None:
    older, hinted = life.queued(), life.queued()
    assert by_status(life.claim(life.worker(), hinted), "running") == [hinted]
    assert life.status(older) == "queued"


@pytest.mark.parametrize("other", [{"queue": "io"}, {"lane": "async"}, {"type": "demo.unknown"}, {"expires_at": "2001-01-01T00:00:00Z"}, {"delay": 3600.0}])
def test_what_this_line_or_worker_may_not_run_is_never_taken_instead(life: Life, other: dict[str, Any]) -> None:
    hinted = life.queued(priority=1)
    better = life.submit(priority=9, **other)
    assert by_status(life.claim(life.worker(), hinted), "running") == [hinted]
    assert life.status(better) in ("pending", "scheduled")


def test_held_and_running_tasks_are_never_taken_instead(life: Life) -> None:
    held, running = life.in_status("held", priority=9), life.running(priority=9)
    hinted = life.queued(priority=1)
    assert by_status(life.claim(life.worker(), hinted), "running") == [hinted]
    assert (life.status(held), life.row(running)["fence"]) == ("held", 1)


@pytest.mark.parametrize("line", [{"queue": "io"}, {"lane": "async"}])
def test_a_hint_that_names_a_task_of_another_line_matches_nothing(life: Life, line: dict[str, str]) -> None:
    task = life.queued(**line)
    assert life.claim(life.worker(), task) == []
    assert life.status(task) == "queued"


@pytest.mark.parametrize("status", ["scheduled", "running", "held", "succeeded", "failed", "cancelled", "expired"])
def test_a_late_or_forged_hint_matches_nothing(life: Life, status: str) -> None:
    task = life.in_status(status)
    before = life.row(task)
    assert life.claim(life.worker(), task, uuid4()) == []
    assert life.row(task) == before


def test_a_direct_hint_runs_a_task_that_is_still_pending(life: Life) -> None:
    task = life.submit()
    (row,) = life.claim(life.worker(), task)
    assert (row["id"], row["status"], counts(life.row(task)), life.event_types(task)) == (task, "running", (1, 1, 0), ["submitted", "started"])
    assert life.row(task)["queued_at"] is not None


def test_a_task_with_a_direct_hint_gives_way_to_a_more_urgent_one_and_stays_where_it_is(life: Life) -> None:
    hinted, urgent = life.submit(priority=1), life.submit(priority=9)
    before = life.row(hinted)
    assert by_status(life.claim(life.worker(), hinted), "running") == [urgent]
    assert life.row(hinted) == before


def test_a_direct_hint_of_a_paused_queue_moves_nothing(life: Life) -> None:
    task = life.submit()
    life.execute("INSERT INTO queues (name, paused_at) VALUES ('default', now())")
    before = life.row(task)
    assert life.claim(life.worker(), task) == []
    assert life.row(task) == before


def test_a_direct_hint_of_an_unknown_type_parks_its_task_until_its_delay_is_over(life: Life) -> None:
    task, worker = life.submit(type="demo.unknown"), life.worker()
    assert [row["unknown"] for row in life.claim(worker, task)] == [True]
    assert life.event_types(task) == ["submitted", "parked"]
    assert life.claim(worker, task, types=("demo.unknown",)) == [], "it waits for its delay, whoever is told of it"


def test_a_repeated_hint_is_one_run(life: Life) -> None:
    task, worker = life.queued(), life.worker()
    assert len(life.claim(worker, task, task, task)) == 1
    assert life.claim(worker, task) == []
    assert (counts(life.row(task)), life.event_types(task)) == ((1, 1, 0), ["submitted", "started"])


def test_no_hints_claim_nothing(life: Life) -> None:
    task = life.queued()
    assert life.claim(life.worker()) == []
    assert life.status(task) == "queued"


def test_a_worker_that_nobody_knows_claims_nothing(life: Life) -> None:
    task = life.queued()
    assert life.claim(uuid4(), task) == []
    assert life.status(task) == "queued"


def test_a_hint_of_a_paused_queue_steps_back_and_nothing_runs(life: Life) -> None:
    hinted, urgent = life.queued(priority=1), life.submit(priority=9)
    life.pause()
    rows = life.claim(life.worker(), hinted)
    assert (by_status(rows, "running"), by_status(rows, "pending")) == ([], [hinted])
    assert [life.status(task) for task in (hinted, urgent)] == ["pending", "pending"]
    assert life.event_types(hinted) == ["submitted"]


def test_an_expired_hint_does_not_run(life: Life) -> None:
    task = life.queued()
    life.pass_time(task, "expires_at")
    assert by_status(life.claim(life.worker(), task), "running") == []
    assert life.event_types(task) == ["submitted"]


def test_an_unknown_type_is_parked_and_the_event_names_it(life: Life) -> None:
    task = life.queued(type="demo.unknown")
    (parked,) = life.claim(life.worker("w7"), task)
    row = life.row(task)
    assert (parked["unknown"], row["status"], row["in_line"], counts(row), row["queued_at"]) == (True, "pending", False, (0, 0, 0), None)
    assert (row["next_run_at"] - row["updated_at"]).total_seconds() == PARK_DELAY
    event = life.last_event(task)
    assert (event["type"], event["data"]["type"]) == ("task.parked", "demo.unknown")
    assert event["data"]["reason"] == "worker w7 has no handler for demo.unknown"
    assert life.dispatch() == []


def test_a_parked_task_is_run_by_a_worker_that_knows_it(life: Life) -> None:
    task = life.queued(type="demo.unknown")
    life.claim(life.worker(), task)
    life.pass_time(task, "next_run_at")
    with life.engine.begin() as connection:
        lifecycle.promote(connection)
    life.dispatch()
    assert by_status(life.claim(life.worker(), task, types=["demo.unknown"]), "running") == [task]


def test_the_hint_of_an_unknown_type_is_worth_a_run_of_a_more_urgent_known_one(life: Life) -> None:
    hinted, urgent = life.queued(type="demo.unknown", priority=1), life.submit(priority=9)
    rows = life.claim(life.worker(), hinted)
    assert (by_status(rows, "running"), by_status(rows, "pending")) == ([urgent], [hinted])
    assert life.event_types(hinted)[-1] == "parked"
