"""A submission may ask to be told of its own task; whoever does not ask pays nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import event

from taskyard import deliveries, lifecycle, retention
from taskyard.deliveries import Tried
from taskyard.masking import Hidden
from taskyard.records import Finished, NewTask
from taskyard.routes import sync_routes
from taskyard.settings import Route

from .life import Life, new

WISHES = (
    {"notifier": "webhook", "events": ["task.submitted", "task.cancelled"], "options": {"url": "http://a", "secret": "s"}},
    {"notifier": "log", "events": ["task.held"], "options": {}},
)


def submit(life: Life, *tasks: NewTask, **more: Any) -> list[UUID]:
    with life.engine.begin() as connection:
        return list(lifecycle.submit(connection, tasks, **more))


def told(life: Life, task: UUID) -> list[str]:
    return life.column("SELECT route || ' ' || notifier || ' ' || event FROM deliveries WHERE task_id = :task ORDER BY id", task=task)


def test_each_subscription_is_told_of_the_events_that_it_names(life: Life) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="all", notifier="log", events=("task.held",))])
    task, other = submit(life, new(notify=WISHES), new())
    for each in (task, other):
        life.person("hold", each)
        life.person("cancel", each)
    assert told(life, task) == ["notify/0 webhook task.submitted", "all log task.held", "notify/1 log task.held", "notify/0 webhook task.cancelled"]
    assert told(life, other) == ["all log task.held"]


def test_a_claim_has_the_options_and_the_routes_of_operators_have_none(life: Life) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="all", notifier="log", events=("task.submitted",))])
    submit(life, new(notify=WISHES))
    with life.engine.begin() as connection:
        rows = deliveries.claim(connection, [one.id for one in deliveries.dispatch(connection, 9, 60, 8)], 60)
    assert {row["route"]: row["options"] for row in rows} == {"all": None, "notify/0": {"url": "http://a", "secret": "s"}}


def test_a_submission_that_is_repeated_by_its_key_subscribes_once(life: Life) -> None:
    task = new(notify=WISHES)
    key = {"namespace": "default", "key": "k", "fingerprint": "f", "task_ids": [str(task.id)]}
    assert submit(life, task, keys=[key]) == [task.id]
    again = new(notify=WISHES)
    assert submit(life, again, keys=[{**key, "task_ids": [str(again.id)]}]) == []
    assert life.column("SELECT task_id FROM subscriptions ORDER BY n") == [task.id] * 2


def test_a_receiver_that_is_gone_ends_its_subscription_and_no_other(life: Life) -> None:
    task, other = submit(life, new(notify=WISHES), new(notify=WISHES))
    with life.engine.begin() as connection:
        due = [one.id for one in deliveries.dispatch(connection, 9, 60, 8)]
        row = next(row for row in deliveries.claim(connection, due, 60) if row["task_id"] == task)
        deliveries.finish(connection, [Tried(row["id"], row["fence"], "dead", "HTTP 410", gone=True)], 8)
    for each in (task, other):
        life.person("hold", each)
        life.person("cancel", each)
    assert told(life, task) == ["notify/0 webhook task.submitted", "notify/1 log task.held"]
    assert told(life, other)[-1] == "notify/0 webhook task.cancelled"


def test_what_was_on_its_way_when_a_subscription_ended_is_dead_with_the_reason(life: Life) -> None:
    submit(life, new(notify=WISHES))
    life.execute("UPDATE subscriptions SET ended_at = now()")
    with life.engine.begin() as connection:
        assert [one.dead for one in deliveries.dispatch(connection, 9, 60, 8)] == [True]
    assert life.column("SELECT tries -> -1 ->> 'detail' FROM deliveries") == ["the subscription has ended"]


def test_subscriptions_go_with_their_task(life: Life) -> None:
    (task,) = submit(life, new(notify=WISHES, id=UUID("01890a5d-ac96-774b-bcce-b302099a8057")))
    life.person("cancel", task)
    life.execute("UPDATE tasks SET finished_at = :at", at=datetime.now(UTC) - timedelta(days=9))
    life.execute("UPDATE deliveries SET status = 'dead', next_try_at = NULL")
    with life.engine.begin() as connection:
        round_ = retention.Round(connection, {"cancelled": 3600.0})
        while not round_.done:
            round_.purge(connection, 10)
    assert life.column("SELECT count(*) FROM subscriptions") == [0]


def test_a_task_without_subscriptions_asks_for_none(life: Life) -> None:
    """PostgreSQL's own count of look-ups: the table of subscriptions is not touched by the verbs of other tasks."""
    submit(life, new(notify=WISHES))
    tasks = submit(life, *[new() for _ in range(200)])
    worker = life.worker()
    counted = "SELECT COALESCE(seq_scan, 0) + COALESCE(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = 'subscriptions'"
    with life.engine.begin() as connection:
        before = connection.exec_driver_sql(counted).scalar()
        lifecycle.dispatch(connection, "default", "sync", 300, 30)
        lifecycle.claim(connection, worker, "default", "sync", tasks, ["demo.work"], 30)
        ended = [Finished(id_, 1, "succeeded", result="1") for id_ in tasks]
        assert len(lifecycle.finish(connection, ended, 3)) == 200
        assert connection.exec_driver_sql(counted).scalar() == before


def test_only_a_submission_that_asks_for_it_writes_subscriptions(life: Life) -> None:
    seen: list[str] = []
    event.listen(life.engine, "before_cursor_execute", listener := lambda *told: seen.append(told[2]))
    try:
        submit(life, new())
        submit(life, new(notify=WISHES))
    finally:
        event.remove(life.engine, "before_cursor_execute", listener)
    assert ["INSERT INTO subscriptions" in statement for statement in seen] == [False, True]


def test_system_events_and_digests_are_kept_for_their_own_time(life: Life) -> None:
    task = life.submit(unique_key=str(uuid4()))
    life.execute(
        """INSERT INTO events (task_id, namespace, type, attempt, time)
        SELECT '00000000-0000-0000-0000-000000000000', 'default', 'worker.lost', 0, now() - n * interval '1 day' FROM generate_series(9, 0, -1) AS n"""
    )
    life.execute(
        """INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event)
        SELECT min(id), 'default', '00000000-0000-0000-0000-000000000000', 'r', 'log', 'worker.lost' FROM events WHERE type = 'worker.lost'"""
    )
    with life.engine.begin() as connection:
        assert retention.purge_system(connection, 4.5 * 86400, 3) == 2
        assert retention.purge_system(connection, 4.5 * 86400, 100) == 2
        assert retention.purge_system(connection, 4.5 * 86400, 100) == 0
    assert life.column("SELECT count(*) FROM events WHERE type = 'worker.lost'") == [6], "the oldest is still to be sent"
    assert life.event_types(task) == ["submitted"]


def test_what_is_hidden_for_a_while_gives_way_to_what_is_newer() -> None:
    hidden = Hidden(most=2)
    hidden.add(["first-secret", "second-secret"])
    assert hidden.clean("first-secret second-secret") == "*** ***"
    hidden.add(["second-secret"])
    hidden.add(["third-secret"])
    assert hidden.clean("first-secret second-secret third-secret") == "first-secret *** ***"
