"""What was queued a while ago and is not claimed, as a worker that hears nothing asks for it."""

from __future__ import annotations

from taskyard import backlog, deliveries
from taskyard.routes import sync_routes
from taskyard.settings import Route
from taskyard.unclaimed import DELIVERIES, consumed_with_unclaimed

from .life import Life


def _found(life: Life, *consumed: tuple[str, str]) -> set[tuple[str, str]]:
    asked = consumed or (("default", "sync"), ("default", "async"), DELIVERIES)
    with life.engine.connect() as connection:
        return consumed_with_unclaimed(connection, asked, 15)


def test_a_task_counts_when_it_was_queued_long_ago_in_a_queue_and_a_lane_that_are_asked_for(life: Life) -> None:
    task = life.queued()
    assert _found(life) == set()
    life.execute("UPDATE tasks SET queued_at = now() - interval '16 seconds' WHERE id = :id", id=task)
    assert _found(life) == {("default", "sync")}
    assert _found(life, ("other", "sync"), ("default", "sync")) == {("default", "sync")}
    assert _found(life, ("other", "sync"), ("default", "async"), DELIVERIES) == set()


def test_what_runs_or_waits_or_is_paused_does_not_count(life: Life) -> None:
    life.submit()
    life.running(lane="async")
    life.queued(queue="still")
    life.execute("UPDATE tasks SET queued_at = now() - interval '16 seconds' WHERE queued_at IS NOT NULL")
    with life.engine.begin() as connection:
        backlog.pause(connection, "still", ["still"], 15)
    assert _found(life, ("default", "sync"), ("default", "async"), ("still", "sync")) == set()


def test_a_notification_counts_when_nobody_took_it_up(life: Life) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="all", notifier="log", events=("task.submitted",))])
    life.submit()
    with life.engine.begin() as connection:
        deliveries.dispatch(connection, 10, 300, 8)
    assert _found(life) == set()
    life.execute("UPDATE deliveries SET updated_at = now() - interval '16 seconds'")
    assert _found(life) == {DELIVERIES}
    with life.engine.begin() as connection:
        deliveries.claim(connection, list(connection.exec_driver_sql("SELECT id FROM deliveries").scalars()), 60)
    life.execute("UPDATE deliveries SET updated_at = now() - interval '16 seconds'")
    assert _found(life) == set()
