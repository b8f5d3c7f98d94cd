"""What happens to the installation is told once, to the routes that want it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import RowMapping, text

from taskyard import backlog, deliveries, system
from taskyard.deliveries import Tried
from taskyard.events import NO_TASK, SYSTEM_EVENT_TYPES
from taskyard.notifiers import Event, TaskInfo
from taskyard.routes import sync_routes
from taskyard.settings import Route

from .life import Life

LIMIT = 60.0


def route(name: str = "ops", **fields: Any) -> Route:
    return Route(**{"name": name, "notifier": "log", "events": SYSTEM_EVENT_TYPES} | fields)


def sync(life: Life, *routes: Route) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, routes)


def look(life: Life, limit: float = LIMIT) -> list[str]:
    with life.engine.begin() as connection:
        return [one.event for one in system.look(connection, limit)]


def told(life: Life, route: str = "ops") -> list[RowMapping]:
    """What a route was told of, oldest first."""
    statement = text(
        "SELECT d.id, d.event, d.task_id, d.namespace, e.data FROM deliveries d JOIN events e ON e.id = d.event_id WHERE d.route = :route ORDER BY d.id"
    )
    with life.engine.connect() as connection:
        return list(connection.execute(statement, {"route": route}).mappings())


def end(life: Life, ids: list[int] | None = None) -> None:
    """Let every delivery that is due, or these, fail for good."""
    with life.engine.begin() as connection:
        due = [one.id for one in deliveries.dispatch(connection, 100, 60, 8) if not one.dead]
        for row in deliveries.claim(connection, due if ids is None else ids, 60):
            deliveries.finish(connection, [Tried(row["id"], row["fence"], "dead", "HTTP 500")], 8)


def test_a_lost_worker_is_told_of_once_with_how_many_tasks_it_ran(life: Life) -> None:
    sync(life, route())
    worker = life.worker("w7")
    life.run(life.submit(), worker)
    life.execute("UPDATE workers SET beat_at = now() - interval '1 minute'")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: life.reap(), range(2)))
    (one,) = told(life)
    assert (one["event"], one["task_id"], one["namespace"]) == ("worker.lost", NO_TASK, "default")
    assert one["data"] == {"worker": "w7", "worker_id": str(worker), "silence_seconds": 15, "tasks": 1}


def age(life: Life, queue: str = "default") -> None:
    life.execute("UPDATE tasks SET created_at = now() - interval '1 hour', updated_at = now() - interval '1 hour' WHERE queue = :queue", queue=queue)


def test_a_stalled_queue_is_told_of_once_until_it_recovers(life: Life) -> None:
    sync(life, route())
    task = life.submit()
    assert look(life) == []
    age(life)
    assert look(life) == ["queue.stalled"]
    assert look(life) == []
    life.person("cancel", task)
    assert look(life) == []
    life.submit()
    age(life)
    assert look(life) == ["queue.stalled"]
    assert [(one["data"]["queue"], one["data"]["limit_seconds"]) for one in told(life)] == [("default", LIMIT)] * 2
    assert told(life)[0]["data"]["oldest_seconds"] >= 3600


def test_a_paused_queue_is_not_stalled_and_queues_choose_routes(life: Life) -> None:
    sync(life, route("io", queues=["io"]), route("gpu", queues=["gpu"]), route("any", types=["x"], min_priority=9, tags=["t"], namespaces=["n"]))
    life.submit(queue="io")
    life.submit(queue="gpu")
    age(life, "io")
    age(life, "gpu")
    with life.engine.begin() as connection:
        backlog.pause(connection, "gpu", ["gpu"], 15)
    assert look(life) == ["queue.stalled"]
    assert (len(told(life, "io")), len(told(life, "gpu")), len(told(life, "any"))) == (1, 0, 1)


def park(life: Life, task: Any) -> None:
    """Have a worker that lacks its type put a task aside."""
    life.execute("UPDATE tasks SET status = 'pending', next_run_at = now() + interval '30 s', updated_at = now() WHERE id = :id", id=task)


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_queue_whose_tasks_are_parked_is_stalled(life: Life, ran_before: bool) -> None:
    sync(life, route())
    task = life.submit()
    if ran_before:
        life.run(task)
        life.end(task, "returned")
        life.execute("UPDATE tasks SET started_at = now() - interval '1 hour'")
    park(life, task)
    assert look(life) == ([] if not ran_before else ["queue.stalled"])
    life.execute("UPDATE tasks SET created_at = now() - interval '1 hour'")
    park(life, task)
    assert look(life) == ([] if ran_before else ["queue.stalled"])
    assert told(life)[0]["data"]["oldest_seconds"] >= 3600
    with life.engine.connect() as connection:
        assert [(row.type, row.queue, row.n) for row in backlog.parked(connection)] == [("demo.work", "default", 1)]


def test_a_task_that_waits_for_its_retry_is_not_parked_and_stalls_nothing(life: Life) -> None:
    task = life.running()
    life.end(task, "retry", delay=3000.0)
    life.execute("UPDATE tasks SET created_at = now() - interval '1 hour', started_at = now() - interval '1 hour'")
    assert look(life) == []
    with life.engine.connect() as connection:
        assert backlog.parked(connection) == []


def test_of_several_dispatchers_one_tells(life: Life) -> None:
    sync(life, route())
    life.submit()
    age(life)
    barrier = threading.Barrier(4, timeout=20)

    def watch(_: int) -> None:
        for _ in range(5):
            barrier.wait()
            look(life)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(watch, range(4)))
    assert len(told(life)) == 1


def note(life: Life, **states: str | None) -> None:
    with life.engine.begin() as connection:
        system.note_plugins(connection, states)


def test_a_failed_plugin_is_told_of_once_for_each_reason_and_again_after_it_worked(life: Life) -> None:
    note(life, pages="ImportError: no", fine=None)
    sync(life, route())
    assert (look(life), look(life)) == (["plugin.failed"], [])
    note(life, pages="ImportError: no")
    assert look(life) == []
    note(life, pages="ImportError: still no")
    assert look(life) == ["plugin.failed"]
    note(life, pages=None)
    assert look(life) == []
    note(life, pages="ImportError: no")
    assert look(life) == ["plugin.failed"]
    assert [one["data"] for one in told(life)] == [{"plugin": "pages", "reason": f"ImportError: {why}"} for why in ("no", "still no", "no")]


def test_a_dead_delivery_is_told_of_but_not_by_its_own_route_and_not_without_end(life: Life) -> None:
    events = ("task.submitted", "delivery.dead")
    sync(life, route("broken", events=events), route("other", events=["delivery.dead"]), route("third", events=["delivery.dead"], types=["else"]))
    task = life.submit()
    end(life)
    assert [one["event"] for one in told(life, "broken")] == ["task.submitted"]
    (one,) = told(life, "other")
    assert one["data"] == {
        "delivery": str(told(life, "broken")[0]["id"]),
        "event": "task.submitted",
        "route": "broken",
        "notifier": "log",
        "tries": 1,
        "cause": "HTTP 500",
        "task_id": str(task),
    }
    end(life)
    assert (len(told(life, "broken")), len(told(life, "other")), told(life, "third")) == (1, 1, [])
    assert life.column("SELECT status FROM deliveries ORDER BY id") == ["dead", "dead"]


def test_a_delivery_whose_senders_were_lost_is_told_of_too(life: Life) -> None:
    sync(life, route("first", events=["task.submitted"]), route("other", events=["delivery.dead"]))
    life.submit()
    with life.engine.begin() as connection:
        deliveries.claim(connection, [one.id for one in deliveries.dispatch(connection, 9, 60, 1)], 60)
    life.execute("UPDATE deliveries SET next_try_at = now()")
    with life.engine.begin() as connection:
        assert [one.dead for one in deliveries.dispatch(connection, 9, 60, 1)] == [True]
    assert told(life, "other")[0]["data"]["cause"] == "the sender was lost"


def test_a_system_event_is_claimed_and_travels_as_a_cloudevent_of_no_task(life: Life) -> None:
    sync(life, route())
    life.submit(queue="io")
    age(life, "io")
    look(life)
    with life.engine.begin() as connection:
        (row,) = deliveries.claim(connection, [one.id for one in deliveries.dispatch(connection, 9, 60, 8)], 60)
    assert (row["event"], row["type"], row["queue"], row["tags"], row["options"]) == ("queue.stalled", "", "io", [], None)
    task = TaskInfo(row["namespace"], row["type"], row["queue"], row["priority"])
    event = Event("evt_1", row["event"], row["time"], row["task_id"], row["task_attempt"], row["data"], task).to_cloudevent()
    assert (event["subject"], event["type"], event["source"]) == ("queue/io", "queue.stalled", "/taskyard/default")
    assert event["data"] == row["data"]
