"""What holds of every row, whoever writes it; and the transition table, against what the statements really do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from taskyard import lifecycle
from taskyard.errors import IllegalTransition
from taskyard.lifecycle import PERSONAL_VERBS, TRANSITIONS
from taskyard.records import Finished
from taskyard.tables import LIVE, TERMINAL

from .life import Life

STATUSES = LIVE + TERMINAL
LATER = (datetime.now(UTC) + timedelta(days=1)).isoformat()
Attempt = Callable[[Life, UUID], Any]


@pytest.mark.parametrize(
    ("status", "change", "constraint"),
    [
        ("pending", "status = 'done'", "ck_tasks_status"),
        ("pending", "status = 'succeeded'", "ck_tasks_finished"),
        ("pending", "finished_at = now()", "ck_tasks_finished"),
        ("succeeded", "status = 'pending'", "ck_tasks_finished"),
        ("succeeded", "finished_at = NULL", "ck_tasks_finished"),
        ("pending", "status = 'scheduled'", "ck_tasks_scheduled"),
        ("queued", "status = 'running'", "ck_tasks_running"),
        ("running", "worker_id = NULL", "ck_tasks_running"),
        ("running", "started_at = NULL", "ck_tasks_running"),
        ("running", "fence = 0, attempt = 0", "ck_tasks_running"),
        ("pending", "priority = 10", "ck_tasks_priority"),
        ("pending", "priority = -1", "ck_tasks_priority"),
        ("pending", "lane = 'slow'", "ck_tasks_lane"),
        ("running", "attempt = 2", "ck_tasks_counts"),
        ("pending", "attempt = -1", "ck_tasks_counts"),
        ("pending", "lost = -1", "ck_tasks_counts"),
        ("pending", "timeout = 0", "ck_tasks_counts"),
        ("pending", "max_attempts = 0", "ck_tasks_counts"),
    ],
)
def test_postgres_refuses_an_impossible_row(life: Life, status: str, change: str, constraint: str) -> None:
    task = life.in_status(status)
    with pytest.raises(IntegrityError) as refused:
        life.execute(f"UPDATE tasks SET {change} WHERE id = :id", id=task)
    assert isinstance(refused.value.orig, psycopg.errors.CheckViolation)
    assert refused.value.orig.diag.constraint_name == constraint


@pytest.mark.parametrize("status", STATUSES)
def test_generated_columns_follow_the_status(life: Life, status: str) -> None:
    row = life.row(life.in_status(status))
    assert row["in_line"] is (status in ("pending", "queued", "running"))
    assert row["ended"] == (status if status in TERMINAL else None)


def with_connection(work: Callable[..., Any], *arguments: Any) -> Attempt:
    def attempt(life: Life, task: UUID) -> Any:
        with life.engine.begin() as connection:
            return work(connection, *arguments)

    return attempt


def promote(life: Life, task: UUID) -> None:
    life.pass_time(task, "next_run_at")
    with_connection(lifecycle.promote)(life, task)


def dispatch(life: Life, task: UUID) -> None:
    life.pass_time(task, "queued_at")
    life.dispatch()


def expire(life: Life, task: UUID) -> None:
    life.pass_time(task, "expires_at")
    with_connection(lifecycle.expire)(life, task)


def claim_instead(life: Life, task: UUID) -> None:
    """Claim with the hint of a less urgent task."""
    hinted = life.submit(priority=0)
    life.execute("UPDATE tasks SET status = 'queued', queued_at = now() WHERE id = :id", id=hinted)
    life.claim(life.worker(), hinted)


def finish(outcome: Any, delay: float = 0.0) -> Attempt:
    return lambda life, task: life.finish(Finished(task, life.row(task)["fence"], outcome, delay=delay))


def reap(max_lost: int = 3, asked: bool = False) -> Attempt:
    def attempt(life: Life, task: UUID) -> None:
        life.execute("UPDATE tasks SET worker_id = :worker WHERE id = :id", id=task, worker=life.worker(silent=60))
        if asked:
            life.execute("UPDATE tasks SET cancel_requested_at = now() WHERE id = :id", id=task)
        life.reap(max_lost=max_lost)

    return attempt


def release_planned(life: Life, task: UUID) -> None:
    life.execute("UPDATE tasks SET run_at = :later WHERE id = :id", id=task, later=LATER)
    life.person("release", task)


def person(verb: str, *arguments: Any) -> Attempt:
    return lambda life, task: life.person(verb, task, *arguments)


#: For each verb, every way in which it may lead somewhere.
ATTEMPTS: dict[str, list[Attempt]] = {
    "promote": [promote],
    "dispatch": [dispatch],
    "withdraw": [lambda life, task: with_connection(lifecycle.withdraw, [task])(life, task)],
    "claim": [
        lambda life, task: life.claim(life.worker(), task),
        lambda life, task: life.claim(life.worker(), task, types=[]),
        claim_instead,
    ],
    "finish": [finish("succeeded"), finish("failed"), finish("retry"), finish("retry", 9.0), finish("cancelled"), finish("lost"), finish("returned")],
    "reap": [reap(), reap(max_lost=0), reap(asked=True)],
    "expire": [expire],
    "cancel": [person("cancel")],
    "hold": [person("hold")],
    "release": [person("release"), release_planned],
    "retry": [person("retry")],
    "update": [person("update", {"run_at": LATER}), person("update", {"run_at": None}), person("update", {"tags": ["a"]})],
}


def moves(life: Life, verb: str) -> Iterator[tuple[str, str]]:
    """Every move (from, to) that a verb makes, tried on a task in each status."""
    for attempt in ATTEMPTS[verb]:
        for status in STATUSES:
            task = life.in_status(status)
            if verb == "promote" and status == "pending":
                life.execute("UPDATE tasks SET next_run_at = now() WHERE id = :id", id=task)
            before = life.row(task)
            with suppress(IllegalTransition):
                attempt(life, task)
            after = life.row(task)
            if after["version"] == before["version"]:
                assert after["status"] == before["status"]
            else:
                yield before["status"], after["status"]
            life.execute("DELETE FROM tasks")


def test_every_verb_of_the_table_is_tried() -> None:
    assert set(ATTEMPTS) == set(TRANSITIONS)
    assert set(PERSONAL_VERBS) <= set(TRANSITIONS)
    assert all(set(table) <= set(STATUSES) for table in TRANSITIONS.values())


@pytest.mark.parametrize("verb", TRANSITIONS)
def test_a_verb_makes_exactly_the_moves_of_the_table(life: Life, verb: str) -> None:
    assert set(moves(life, verb)) == {(start, end) for start, ends in TRANSITIONS[verb].items() for end in ends}
