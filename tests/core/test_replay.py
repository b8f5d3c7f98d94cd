"""A replay sends a route what it would have had, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from taskyard.errors import NotFound
from taskyard.replay import Progress, first_event, replay
from taskyard.routes import sync_routes
from taskyard.settings import Route

from .life import Life

LONG_AGO, LATER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def sync(life: Life, *routes: Route) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, routes)


def route(name: str = "new", **fields: Any) -> Route:
    return Route(**{"name": name, "notifier": "log", "events": ("task.submitted",)} | fields)


def run(life: Life, since: datetime = LONG_AGO, until: datetime = LATER, **more: Any) -> list[Progress]:
    return list(replay(life.engine, "new", since, until, **more))


def sent(life: Life) -> list[Any]:
    return life.column("SELECT task_id FROM deliveries WHERE route = 'new' ORDER BY id")


def test_past_events_that_the_route_wants_are_sent_in_their_order_and_once(life: Life) -> None:
    wanted = [life.submit(type="demo.a") for _ in range(5)]
    life.submit(type="other")
    sync(life, route(types=["demo.*"]))
    wanted += [life.submit(type="demo.b")]
    steps = run(life, batch=3)
    assert [round(step.fraction * 7) for step in steps][-1] == 7
    assert [step.read for step in steps] == [3, 6, 7]
    assert (steps[-1].read, steps[-1].sent) == (7, 5)
    assert sorted(sent(life)) == sorted(wanted)
    assert sent(life)[1:] == wanted[:5], "the one that the route had is left out"
    assert run(life)[-1].sent == 0
    with life.engine.connect() as connection:
        rows = connection.execute(text("SELECT d.status, d.event, e.type, d.notifier FROM deliveries d JOIN events e ON e.id = d.event_id")).all()
    assert {tuple(row) for row in rows} == {("pending", "task.submitted", "task.submitted", "log")}


def test_a_dry_run_counts_and_sends_nothing(life: Life) -> None:
    for _ in range(3):
        life.submit()
    sync(life, route())
    assert run(life, dry_run=True)[-1].sent == 3
    assert sent(life) == []


def test_only_events_of_the_time_are_sent_and_those_before_are_not_read(life: Life) -> None:
    tasks = [life.submit() for _ in range(40)]
    life.execute("UPDATE events SET time = timestamptz '2026-01-01' + (id - (SELECT min(id) FROM events)) * interval '1 hour'")
    sync(life, route())
    since = datetime(2026, 1, 1, 20, tzinfo=UTC)
    steps = run(life, since, since + timedelta(hours=5))
    assert sent(life) == tasks[20:25]
    assert steps[-1].read <= 40 - 18
    with life.engine.connect() as connection:
        assert first_event(connection, LATER) > first_event(connection, LONG_AGO)


def test_two_replays_at_once_send_each_event_once(life: Life) -> None:
    tasks = [life.submit() for _ in range(60)]
    sync(life, route())
    barrier = threading.Barrier(3, timeout=20)

    def both(_: int) -> None:
        barrier.wait()
        run(life, batch=7)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(both, range(3)))
    assert sent(life) == tasks


def test_a_route_that_no_dispatcher_knows_is_named_with_the_nearest(life: Life) -> None:
    sync(life, route("nwe"))
    with pytest.raises(NotFound, match="'nwe'"):
        run(life)
