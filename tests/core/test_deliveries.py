"""A route's wish becomes a delivery in the statement that moved the task, and a delivery ends once."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import RowMapping, text

from taskyard import deliveries, feed, lifecycle
from taskyard.deliveries import Tried
from taskyard.errors import IllegalTransition
from taskyard.events import EVENT_TYPES, MOST_TOLD
from taskyard.routes import glob_pattern, sync_routes
from taskyard.settings import Route

from .life import Life

LEASE, MAX_ATTEMPTS = 30.0, 3


def route(name: str = "all", **fields: Any) -> Route:
    return Route(**{"name": name, "notifier": "log", "events": EVENT_TYPES} | fields)


def sync(life: Life, *routes: Route) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, routes)


def wanted(life: Life, task: UUID) -> list[str]:
    """The events of a task that have a delivery, oldest first."""
    statement = "SELECT e.type FROM deliveries d JOIN events e ON e.id = d.event_id WHERE d.task_id = :task ORDER BY d.id"
    return [type_.removeprefix("task.") for type_ in life.column(statement, task=task)]


def matched(life: Life, **fields: Any) -> bool:
    return wanted(life, life.submit(**fields)) == ["submitted"]


@pytest.mark.parametrize(
    ("globs", "matching", "others"),
    [
        (["report.*"], ["report.daily", "report.", "report.a.b"], ["report", "reports.daily", "xreport.daily"]),
        (["*.x.*"], ["a.x.b", "a.b.x.c"], ["a.x", "x.b", "a.xx.b"]),
        (["*a*b*c*"], ["abc", "xaxbxcx"], ["acb"]),
        (["demo.wor?"], ["demo.work", "demo.worm"], ["demo.wor", "demo.works"]),
        (["a.b"], ["a.b"], ["axb", "a.b.c"]),
        (["a-b", "c_*"], ["a-b", "c_d"], ["a_b", "c-d"]),
        (["*"], ["anything"], []),
        ([], [], ["anything"]),
        (["[ab].x", "n[0-2-]", "[!x-z]q"], ["a.x", "b.x", "n0", "n2", "n-", "aq", "!q"], ["c.x", "ab.x", "n3", "xq", "q", "[ab].x"]),
        (["[]x]", "[!]x]y", "b[z-a]", "c[!z-a]", r"[\d]", "[^a]"], ["]", "x", "ay", "cb", "\\", "d", "^", "a"], ["]y", "b", "5", "b[z-a]", "c"]),
        (["[[:alpha:]]w", "[a[.b.]]"], [":]w", "[]w", "l]w", "a]", "[]", ".]"], ["lw", "a", "b"]),
        (["[ab", "a|b", "(a", "a+", "a{2}", "^a$", "\\", "\\d", "***:(?i)A", "é", "'"], [], ["a", "b", "a.x", "aa", "5"]),
    ],
)
def test_types_are_chosen_by_globs(life: Life, globs: list[str], matching: list[str], others: list[str]) -> None:
    sync(life, route(types=globs))
    assert [name for name in matching + others if matched(life, type=name)] == matching


@given(st.lists(st.text("abc.-_*?[]!^\\", max_size=8), min_size=1, max_size=3), st.text("abc.-_[]!^\\", min_size=1, max_size=8))
@example(["*a*b*"], "ab")
@example(["[a-"], "[a-")
def test_a_glob_means_what_a_shell_means_by_it(globs: list[str], name: str) -> None:
    pattern = glob_pattern(globs)
    assert pattern is not None
    assert bool(re.search(pattern, name)) is any(fnmatchcase(name, glob) for glob in globs)


def test_queues_tags_priority_and_events_choose_too(life: Life) -> None:
    sync(life, route(queues=["io", "gpu"]))
    assert [matched(life, queue=queue) for queue in ("io", "gpu", "default")] == [True, True, False]
    sync(life, route(tags=["a", "b"]))
    assert [matched(life, tags=tags) for tags in (("a",), ("x", "b"), ("x",), ())] == [True, True, False, False]
    sync(life, route(min_priority=5))
    assert [matched(life, priority=priority) for priority in (4, 5, 9)] == [False, True, True]
    sync(life, route(events=["task.failed"]))
    assert not matched(life)
    sync(life, route(types=["demo.*"], queues=["io"], tags=["a"], min_priority=5))
    assert [matched(life, **{"queue": "io", "tags": ("a",), "priority": 5} | other) for other in ({}, {"priority": 4}, {"tags": ()})] == [True, False, False]


def test_each_matching_route_has_a_delivery_of_its_own(life: Life) -> None:
    sync(life, route("one"), route("two", notifier="webhook"), route("three", types=["other.*"]))
    task = life.submit(namespace="team")
    with life.engine.connect() as connection:
        rows = connection.execute(text("SELECT route, notifier, status, attempt, namespace, task_id FROM deliveries ORDER BY route")).all()
    assert [tuple(row) for row in rows] == [("one", "log", "pending", 0, "team", task), ("two", "webhook", "pending", 0, "team", task)]


def test_every_verb_tells_what_it_did(life: Life) -> None:
    sync(life, route())
    worker = life.worker()
    task = life.submit(max_attempts=5)
    for verb in ("hold", "release"):
        life.person(verb, task)
    life.person("update", task, {"tags": ["a"]})
    life.run(task, worker)
    with life.engine.begin() as connection:
        lifecycle.progress(connection, {(task, 1): {"fraction": 1}})
    life.end(task, "retry")
    life.run(task, life.worker(silent=60))
    life.reap()
    life.run(task, worker)
    life.person("cancel", task)
    life.end(task, "cancelled")
    life.person("retry", task)
    life.run(task, worker)
    life.end(task, "succeeded")
    failed, expired = life.in_status("failed"), life.in_status("expired")
    parked = life.queued(type="demo.unknown")
    life.claim(worker, parked)
    for each in (task, failed, expired, parked):
        assert wanted(life, each) == life.event_types(each)
    told = {f"task.{event}" for each in (task, failed, expired, parked) for event in wanted(life, each)}
    assert told == set(EVENT_TYPES)


def test_a_move_that_is_undone_tells_nothing(life: Life) -> None:
    sync(life, route())
    task = life.submit()
    with life.engine.connect() as connection:
        lifecycle.cancel(connection, "default", task)
        connection.rollback()
    assert wanted(life, task) == ["submitted"]


def routes_there(life: Life) -> dict[str, str]:
    with life.engine.connect() as connection:
        return {row.name: row.notifier for row in connection.execute(text("SELECT name, notifier FROM routes"))}


def test_the_configured_routes_are_the_ones_that_count(life: Life) -> None:
    sync(life, route("one"), route("two"))
    for _ in range(2):
        sync(life, route("two", notifier="webhook", types=["a.*"]), route("three"))
        assert routes_there(life) == {"two": "webhook", "three": "log"}
    sync(life)
    assert routes_there(life) == {}
    assert not matched(life)


def test_dispatchers_that_start_together_agree(life: Life) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def start(n: int) -> None:
        barrier.wait()
        sync(life, *[route(f"r{i}", notifier=f"n{n}") for i in range(5)][:: 1 if n % 2 else -1])

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(start, range(4)))
        there = routes_there(life)
        assert (len(there), len(set(there.values()))) == (5, 1)


# --- the life of a delivery ---


def dispatch(life: Life, limit: int = 100) -> list[int]:
    with life.engine.begin() as connection:
        return [due.id for due in deliveries.dispatch(connection, limit, LEASE, MAX_ATTEMPTS) if not due.dead]


def claim(life: Life, ids: Sequence[int]) -> list[RowMapping]:
    with life.engine.begin() as connection:
        return deliveries.claim(connection, ids, LEASE)


def finish(life: Life, claimed: RowMapping, outcome: Any, **fields: Any) -> list[RowMapping]:
    with life.engine.begin() as connection:
        return deliveries.finish(connection, [Tried(claimed["id"], claimed["fence"], outcome, **fields)], MAX_ATTEMPTS)


def delivery(life: Life) -> RowMapping:
    with life.engine.connect() as connection:
        return connection.execute(text("SELECT * FROM deliveries")).mappings().one()


def let_lease_pass(life: Life) -> None:
    life.execute("UPDATE deliveries SET next_try_at = now() WHERE next_try_at IS NOT NULL")


def one(life: Life) -> UUID:
    sync(life, route())
    return life.submit(tags=("t",), priority=7)


@pytest.mark.parametrize("kept", ["null", "false", '{"size": 3}', f'"{"x" * (MOST_TOLD - 2)}"'], ids=lambda text: text[:20])
def test_a_success_tells_a_route_its_result(life: Life, kept: str) -> None:
    sync(life, route(events=("task.succeeded",)))
    task = life.running()
    life.end(task, "succeeded", result=kept)
    (claimed,) = claim(life, dispatch(life))
    assert claimed["outcome"] == {"result": json.loads(kept)}
    with life.engine.connect() as connection:
        told = [feed.event_of(row).to_cloudevent() for row in feed.events(connection, 0, 2**62, 10)]
    assert [event["data"].get("result", "none") for event in told] == ["none", "none", json.loads(kept)]
    assert all("result_url" not in event["data"] for event in told)


@pytest.mark.parametrize("said", ["a", "aé"])
def test_a_large_result_is_told_by_its_address(life: Life, said: str) -> None:
    sync(life, route(events=("task.succeeded", "task.failed")))
    task, failed = life.running(), life.running()
    # It is compressed in its row: what counts is its text.
    life.end(task, "succeeded", result=json.dumps(said * MOST_TOLD, ensure_ascii=False))
    life.end(failed, "failed", error={"code": "no"})
    assert [row["outcome"] for row in claim(life, dispatch(life))] == [{"result_url": f"/api/v1/tasks/{task}"}, None]


def test_a_subscription_is_told_the_address_of_the_result_alone(life: Life) -> None:
    task = life.running(notify=[{"notifier": "log", "events": ["task.succeeded"], "options": {}}])
    life.end(task, "succeeded", result='{"secret": 1}')
    (claimed,) = claim(life, dispatch(life))
    assert (claimed["route"], claimed["outcome"]) == ("notify/0", {"result_url": f"/api/v1/tasks/{task}"})


def test_a_delivery_is_sent_once_and_remembers_it(life: Life) -> None:
    task = one(life)
    (id_,) = dispatch(life)
    assert dispatch(life) == []
    (claimed,) = claim(life, [id_])
    assert claim(life, [id_]) == []
    assert (claimed["task_id"], claimed["event"], claimed["type"], claimed["tags"], claimed["priority"]) == (task, "task.submitted", "demo.work", ["t"], 7)
    assert (claimed["attempt"], claimed["fence"], claimed["route"], claimed["status"]) == (1, 1, "all", "pending")
    assert [row["status"] for row in finish(life, claimed, "delivered", detail="204", duration=0.25)] == ["delivered"]
    row = delivery(life)
    assert (row["status"], row["next_try_at"]) == ("delivered", None)
    assert row["delivered_at"] is not None
    assert [{**said, "time": None} for said in row["tries"]] == [{"attempt": 1, "time": None, "outcome": "delivered", "detail": "204", "duration": 0.25}]
    assert finish(life, claimed, "retry") == []
    assert dispatch(life) == []


def test_a_failed_try_waits_its_delay_and_the_last_is_dead(life: Life) -> None:
    one(life)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (claimed,) = claim(life, dispatch(life))
        assert claimed["attempt"] == attempt
        finish(life, claimed, "retry", delay=100.0, detail="503")
        assert dispatch(life) == []
        if attempt < MAX_ATTEMPTS:
            assert (row := delivery(life))["status"] == "pending"
            assert (row["next_try_at"] - row["updated_at"]).total_seconds() == 100
        let_lease_pass(life)
    row = delivery(life)
    assert (row["status"], row["next_try_at"], [said["outcome"] for said in row["tries"]]) == ("dead", None, ["failed"] * 3)


def test_a_try_that_says_so_is_the_last(life: Life) -> None:
    one(life)
    (claimed,) = claim(life, dispatch(life))
    finish(life, claimed, "dead", detail="410")
    assert delivery(life)["status"] == "dead"


def test_a_lost_message_and_a_lost_sender_are_found_by_the_lease(life: Life) -> None:
    one(life)
    (id_,) = dispatch(life)
    let_lease_pass(life)
    assert dispatch(life) == [id_]
    (stale,) = claim(life, [id_])
    let_lease_pass(life)
    assert dispatch(life) == [id_]
    (claimed,) = claim(life, [id_])
    assert finish(life, stale, "delivered") == []
    assert (delivery(life)["status"], claimed["attempt"], claimed["fence"]) == ("sending", 2, 2)
    finish(life, claimed, "delivered")
    assert [(said["outcome"], said["attempt"]) for said in delivery(life)["tries"]] == [("failed", 1), ("delivered", 2)]


def test_a_delivery_that_kills_its_senders_ends_as_dead(life: Life) -> None:
    one(life)
    for _ in range(MAX_ATTEMPTS):
        claim(life, dispatch(life))
        let_lease_pass(life)
    assert dispatch(life) == []
    row = delivery(life)
    assert (row["status"], row["next_try_at"], row["attempt"]) == ("dead", None, MAX_ATTEMPTS)
    assert [(said["attempt"], said["detail"]) for said in row["tries"]] == [(n, "the sender was lost") for n in (1, 2, 3)]


def test_what_could_not_be_published_is_due_at_once(life: Life) -> None:
    one(life)
    ids = dispatch(life)
    with life.engine.begin() as connection:
        deliveries.withdraw(connection, ids)
    assert delivery(life)["status"] == "pending"
    assert claim(life, ids) == []
    assert dispatch(life) == ids


def test_only_as_many_as_asked_are_dispatched_and_the_oldest_first(life: Life) -> None:
    sync(life, route())
    for _ in range(5):
        life.submit()
    first, second = dispatch(life, 2), dispatch(life, 10)
    assert (len(first), len(second)) == (2, 3)
    assert first + second == sorted(first + second)


def test_of_senders_that_claim_one_delivery_one_gets_it(life: Life) -> None:
    one(life)
    for n in range(30):
        ids, barrier = dispatch(life), threading.Barrier(2, timeout=20)

        def send(ids: list[int] = ids, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return len(claim(life, ids))

        with ThreadPoolExecutor(2) as pool:
            assert sorted(future.result() for future in [pool.submit(send), pool.submit(send)]) == [0, 1]
        life.execute("UPDATE deliveries SET status = 'pending', next_try_at = now()")
        assert delivery(life)["attempt"] == n + 1


def redeliver(life: Life, id_: int) -> Mapping[str, Any]:
    with life.engine.begin() as connection:
        return deliveries.redeliver(connection, "default", id_)


def test_a_sender_from_before_a_redelivery_changes_nothing(life: Life) -> None:
    one(life)
    (stale,) = claim(life, dispatch(life))
    let_lease_pass(life)
    (claimed,) = claim(life, dispatch(life))
    finish(life, claimed, "dead")
    row = redeliver(life, claimed["id"])
    assert (row["status"], row["attempt"], row["fence"], row["event"]) == ("pending", 0, 2, "task.submitted")
    (again,) = claim(life, dispatch(life))
    assert (again["attempt"], again["fence"], again["event_id"]) == (1, 3, claimed["event_id"])
    assert finish(life, stale, "delivered") == finish(life, claimed, "delivered") == []
    assert delivery(life)["status"] == "sending"
    finish(life, again, "delivered")
    assert delivery(life)["status"] == "delivered"


def test_of_two_that_redeliver_one_does(life: Life) -> None:
    one(life)
    (claimed,) = claim(life, dispatch(life))
    finish(life, claimed, "dead")
    barrier = threading.Barrier(2, timeout=20)

    def ask() -> str:
        barrier.wait()
        try:
            return str(redeliver(life, claimed["id"])["status"])
        except IllegalTransition as refused:
            return f"refused: {refused.status}"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(future.result() for future in [pool.submit(ask), pool.submit(ask)]) == ["pending", "refused: pending"]
