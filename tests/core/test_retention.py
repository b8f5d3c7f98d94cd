"""Retention: what ended long ago goes, with all that belongs to it, and nothing else does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, text

from taskyard import queries, retention
from taskyard.dispatch.app import create_celery
from taskyard.dispatch.dispatcher import Dispatcher
from taskyard.dispatch.publisher import Publisher
from taskyard.metrics import PURGED
from taskyard.routes import sync_routes
from taskyard.settings import RetentionSettings, Route, Settings
from taskyard.tables import TERMINAL

from .life import Life
from .test_plans import indexes


def age(life: Life, *tasks: UUID, days: float = 10) -> None:
    """Let tasks have ended some days ago; their ids tell of it too, as they would."""
    for task in tasks:
        old = UUID(int=task.int - (int(timedelta(days=days).total_seconds() * 1000) << 80))
        for table, column in (("tasks", "id"), ("events", "task_id"), ("deliveries", "task_id")):
            life.execute(f"UPDATE {table} SET {column} = :old WHERE {column} = :id", id=task, old=old)
        life.execute("UPDATE tasks SET finished_at = finished_at - :days * interval '1 day' WHERE id = :id", id=old, days=days)


def purge(engine: Engine, limit: int = 1000, **days: float | None) -> int:
    """Everything that these periods, in days, let go."""
    with engine.begin() as connection:
        walk = retention.Round(connection, {status: value and value * 86400 for status, value in days.items()})
    gone = 0
    while not walk.done:
        with engine.begin() as connection:
            gone += walk.purge(connection, limit)[1]
    return gone


def left(life: Life) -> set[str]:
    return set(life.column("SELECT status FROM tasks"))


def test_each_status_has_a_period_of_its_own_and_what_lives_is_never_old(life: Life) -> None:
    for status in (*TERMINAL, "running", "pending", "held", "scheduled"):
        task = life.in_status(status)
        if status in TERMINAL:
            age(life, task)
        else:
            life.execute("UPDATE tasks SET created_at = now() - interval '99 days' WHERE id = :id", id=task)
    assert purge(life.engine) == 0
    assert purge(life.engine, succeeded=11, failed=None) == 0
    assert purge(life.engine, succeeded=9, failed=11) == 1
    assert "succeeded" not in left(life)
    assert purge(life.engine, failed=9, cancelled=9, expired=9, succeeded=9) == 3
    assert left(life) == {"pending", "held", "scheduled", "running"}


def test_a_tasks_history_and_deliveries_go_with_it_and_others_stay(life: Life) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="all", notifier="log", events=("task.succeeded",))])
    old, new = life.in_status("succeeded"), life.in_status("succeeded")
    life.execute("UPDATE deliveries SET status = 'delivered', delivered_at = now(), next_try_at = NULL")
    age(life, old)
    assert purge(life.engine, succeeded=1) == 1
    assert life.column("SELECT id FROM tasks") == [new]
    assert set(life.column("SELECT task_id FROM events")) == {new}
    assert life.column("SELECT task_id FROM deliveries") == [new]


def test_a_task_that_is_still_being_told_of_waits_until_that_is_over(life: Life) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="all", notifier="log", events=("task.failed",))])
    task = life.in_status("failed")
    age(life, task)
    assert purge(life.engine, failed=1) == 0
    life.execute("UPDATE deliveries SET status = 'dead', next_try_at = NULL")
    assert purge(life.engine, failed=1) == 1


def test_it_goes_in_batches_the_oldest_first_and_two_at_once_share(life: Life) -> None:
    tasks = [life.in_status("expired", namespace=f"n{number % 2}") for number in range(20)]
    for number, task in enumerate(tasks):
        age(life, task, days=30 - number)
    with life.engine.begin() as connection:
        walk = retention.Round(connection, {"expired": 86400.0})
        assert walk.purge(connection, 3) == ("expired", 3)
    assert min(life.column("SELECT finished_at FROM tasks WHERE namespace = 'n0'")) > min(life.column("SELECT finished_at FROM tasks"))
    with ThreadPoolExecutor(4) as pool:
        gone = list(pool.map(lambda _: purge(life.engine, limit=5, expired=1), range(8)))
    assert sum(gone) == 17
    assert life.column("SELECT count(*) FROM tasks") == life.column("SELECT count(*) FROM events") == [0]


def test_a_purge_reads_the_oldest_of_what_has_ended(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(
            text("""
            INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts, created_at, finished_at)
            SELECT CAST(lpad(to_hex((extract(epoch FROM now() - n * interval '1 s') * 1000)::bigint), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0')
              AS uuid), 'demo.work', 'default', 'sync', 5, 'succeeded', '1', 60, 3, now() - n * interval '1 s', now() - (n - 1) * interval '1 s'
            FROM generate_series(1, 20000) AS n""")
        )
        connection.execute(text("ANALYZE tasks"))
        assert indexes(connection, retention._NAMESPACES)
        before = connection.execute(text("SELECT now() - interval '1 hour'")).scalar_one()
        values = {"namespace": "default", "status": "succeeded", "before": before, "id": queries.first_id(before), "after": UUID(int=0), "limit": 200}
        assert indexes(connection, retention._PURGE, **values) & {"ix_tasks_ended", "pk_tasks"}
        connection.rollback()


def test_it_comes_to_what_stands_behind_many_that_stay(life: Life) -> None:
    late = [life.in_status("expired") for _ in range(12)]
    old = life.in_status("expired")
    age(life, *late, old)
    life.execute("UPDATE tasks SET finished_at = now() WHERE id <> (SELECT id FROM tasks ORDER BY id DESC LIMIT 1)")
    assert purge(life.engine, limit=2, expired=1) == 1
    assert life.column("SELECT count(*) FROM tasks") == [12]


def test_the_dispatcher_comes_to_the_last_namespace_however_little_time_it_has(life: Life, settings: Settings) -> None:
    age(life, *[life.in_status("expired", namespace=f"n{number:02}") for number in range(4)])
    asked = settings.model_copy(update={"retention": RetentionSettings(expired=60.0, failed=60.0)})
    dispatcher = Dispatcher(asked, life.engine, Publisher(create_celery(asked), asked.broker))
    passes = 0
    # Time for one page, and none for a second.
    while not dispatcher._purge_tasks(time.monotonic() + 0.0005):
        passes += 1
        assert passes < 10_000
    dispatcher.stop()
    dispatcher.run()
    assert passes > 1
    assert life.column("SELECT count(*) FROM tasks") == [0]


def test_the_dispatcher_does_it_and_counts(life: Life, settings: Settings) -> None:
    age(life, *[life.in_status("cancelled") for _ in range(5)])
    keep = life.in_status("cancelled")
    asked = settings.model_copy(update={"retention": RetentionSettings.model_validate({"cancelled": "1d"})})
    dispatcher = Dispatcher(asked, life.engine, Publisher(create_celery(asked), asked.broker))
    dispatcher.tick()
    dispatcher.stop()
    dispatcher.run()
    assert life.column("SELECT id FROM tasks") == [keep]
    with life.engine.connect() as connection:
        counted = connection.execute(text("SELECT labels, value FROM counters WHERE name = :name"), {"name": PURGED.name}).all()
    assert [tuple(row) for row in counted] == [(["cancelled"], 5.0)]


@pytest.mark.parametrize(
    ("written", "seconds"), [("12h", 43_200.0), ("30d", 2_592_000.0), ("2 w", 1_209_600.0), ("90m", 5_400.0), (3600, 3600.0), ("3600", 3600.0)]
)
def test_a_period_is_a_number_of_seconds_or_has_a_unit(written: Any, seconds: float) -> None:
    assert RetentionSettings.model_validate({"failed": written}).failed == seconds


@pytest.mark.parametrize("wrong", ["soon", "30 days", "1s", 5, "-1d", "", "999999w", "nan"])
def test_a_wrong_period_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        RetentionSettings.model_validate({"failed": wrong})
