"""A night's outage is one message, and every event of it is counted once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from sqlalchemy import text

from taskyard import digests, lifecycle
from taskyard.records import Finished
from taskyard.routes import disable, enable, sync_routes
from taskyard.settings import Route

from .life import MAX_LOST, Life, new


def route(name: str = "night", **fields: Any) -> Route:
    return Route(**{"name": name, "notifier": "log", "events": ("task.failed", "task.submitted"), "every": "10m"} | fields)


def sync(life: Life, *routes: Route) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, routes)


def fold(life: Life) -> dict[str, int]:
    with life.engine.begin() as connection:
        return digests.fold(connection)


def told(life: Life) -> list[dict[str, Any]]:
    """The digests, oldest first."""
    return life.column("SELECT e.data FROM deliveries d JOIN events e ON e.id = d.event_id WHERE d.event = 'digest' ORDER BY d.id")


def let_pass(life: Life) -> None:
    life.execute("UPDATE routes SET digested_at = digested_at - interval '10 minutes'")


def test_the_first_message_goes_at_once_and_the_next_when_its_time_has_come(life: Life) -> None:
    sync(life, route(first=2))
    assert fold(life) == {}
    ids = [life.submit(type=f"demo.{name}") for name in "aab"]
    assert life.column("SELECT count(*) FROM deliveries") == [0]
    assert fold(life) == {"night": 3}
    more = life.submit(type="demo.c")
    assert fold(life) == {}
    let_pass(life)
    assert fold(life) == {"night": 1}
    let_pass(life)
    assert fold(life) == {}
    first, second = told(life)
    assert (first["count"], first["others"], first["route"]) == (3, 0, "night")
    assert first["counts"] == [{"event": "task.submitted", "type": "demo.a", "count": 2}, {"event": "task.submitted", "type": "demo.b", "count": 1}]
    assert [event["subject"] for event in first["events"]] == [str(id_) for id_ in ids[:2]]
    assert (first["events"][0]["data"]["task"]["type"], first["events"][0]["type"]) == ("demo.a", "task.submitted")
    assert [event["subject"] for event in second["events"]] == [str(more)]
    assert first["since"] <= first["until"] <= second["since"]


def test_each_route_has_its_own_and_others_get_every_event(life: Life) -> None:
    sync(life, route("a", types=["demo.*"]), route("b", first=0), route("single", every=None))
    life.submit(type="demo.x")
    life.submit(type="other")
    assert fold(life) == {"a": 1, "b": 2}
    assert [digest["events"] for digest in told(life) if digest["route"] == "b"] == [[]]
    assert life.column("SELECT event FROM deliveries WHERE route = 'single' ORDER BY id") == ["task.submitted"] * 2


def failures(life: Life, count: int, workers: int) -> None:
    """Tasks that fail, by several workers at once, 200 a statement."""
    tasks = [new(type=f"demo.{n % 3}") for n in range(count)]
    with life.engine.begin() as connection:
        lifecycle.submit(connection, tasks)
    life.execute("UPDATE tasks SET status = 'running', worker_id = gen_random_uuid(), started_at = now(), fence = 1, attempt = 1")

    def finish(part: list[UUID]) -> None:
        for start in range(0, len(part), 200):
            with life.engine.begin() as connection:
                ended = [Finished(id_, 1, "failed", error={"code": "x", "message": "no"}) for id_ in part[start : start + 200]]
                assert len(lifecycle.finish(connection, ended, MAX_LOST)) == len(ended)

    ids = [task.id for task in tasks]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(finish, [ids[n::workers] for n in range(workers)]))


def test_of_ten_thousand_failures_with_dispatchers_at_work_none_is_left_out_and_none_is_counted_twice(life: Life) -> None:
    sync(life, route(events=["task.failed"]))
    over = threading.Event()

    def dispatcher(_: int) -> None:
        while not over.is_set():
            fold(life)
            let_pass(life)
            over.wait(0.02)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(dispatcher, n) for n in range(2)]
        failures(life, 10_000, 3)
        over.set()
        for one in watching:
            one.result()
    let_pass(life)
    fold(life)
    counted: Counter[str] = Counter()
    for digest in told(life):
        assert digest["count"] == sum(part["count"] for part in digest["counts"])
        counted.update({part["type"]: part["count"] for part in digest["counts"]})
    assert counted == {"demo.0": 3334, "demo.1": 3333, "demo.2": 3333}
    assert life.column("SELECT count(*) FROM digest_items") == [0]


def test_more_kinds_than_a_digest_names_are_counted_together(life: Life, monkeypatch: Any) -> None:
    monkeypatch.setattr(digests, "MAX_COUNTS", 2)
    sync(life, route())
    for name in ("a", "a", "b", "c", "d"):
        life.submit(type=name)
    fold(life)
    (digest,) = told(life)
    assert ([part["type"] for part in digest["counts"]], digest["others"], digest["count"]) == (["a", "b"], 2, 5)


def test_what_waits_is_sent_when_the_route_gets_no_more_digests_and_dropped_with_the_route(life: Life) -> None:
    sync(life, route("stays"), route("goes"))
    life.submit()
    fold(life)
    life.submit()
    sync(life, route("stays", every=None))
    assert fold(life) == {"stays": 1}
    assert life.column("SELECT count(*) FROM digest_items") == [0]


def test_a_route_that_is_switched_off_collects_nothing_and_keeps_what_it_had(life: Life) -> None:
    sync(life, route())
    life.submit()
    with life.engine.begin() as connection:
        assert disable(connection, "night", "gone")
    life.submit()
    assert fold(life) == {}
    with life.engine.begin() as connection:
        assert enable(connection, "night")
    assert fold(life) == {"night": 1}


def test_events_whose_task_is_gone_by_then_are_counted(life: Life) -> None:
    sync(life, route())
    life.submit()
    life.execute("DELETE FROM tasks")
    life.execute("DELETE FROM events")
    assert fold(life) == {"night": 1}
    assert told(life)[0]["events"] == []


def test_a_digest_can_be_sent_again_as_it_was(life: Life) -> None:
    sync(life, route())
    life.submit()
    fold(life)
    with life.engine.connect() as connection:
        row = connection.execute(text("SELECT event_id, status FROM deliveries")).one()
        assert connection.execute(text("SELECT data ->> 'count' FROM events WHERE id = :id"), {"id": row.event_id}).scalar() == "1"
    assert row.status == "pending"
