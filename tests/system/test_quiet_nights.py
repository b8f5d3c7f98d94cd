"""What operators are told, on real roles: a digest of an outage, events of a task in order, and receivers that want no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from taskyard.routes import enable
from tests.stack import Stack, until

pytestmark = pytest.mark.one_pair

DIGEST = """
[[routes]]
name = "night"
notifier = "witness"
events = ["task.failed"]
every = "10s"
first = 5
"""
EVERY = """
[[routes]]
name = "every"
notifier = "witness"
events = ["task.submitted", "task.started", "task.progress", "task.succeeded"]
"""
GONE = """
[[routes]]
name = "closed"
notifier = "witness"
events = ["task.succeeded"]
[routes.options]
answer = "gone"

[[routes]]
name = "ops"
notifier = "witness"
events = ["delivery.dead", "plugin.failed", "worker.lost"]
"""


@pytest.fixture
def start(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    made: list[Stack] = []

    def start(config: str, **settings: str) -> Stack:
        (tmp_path / "taskyard.toml").write_text(config)
        stack = Stack(database_url, broker_url, tmp_path, TASKYARD_CONFIG=str(tmp_path / "taskyard.toml"), **settings)
        made.append(stack)
        stack.start("dispatcher")
        stack.start("worker")
        return stack.ready()

    yield start
    for stack in made:
        stack.close()


def column(stack: Stack, statement: str, **values: Any) -> list[Any]:
    with stack.engine.connect() as connection:
        return list(connection.execute(text(statement), values).scalars())


@pytest.mark.timeout(300)
def test_ten_thousand_failures_are_a_handful_of_messages_and_every_one_is_counted(start: Callable[..., Stack]) -> None:
    stack = start(DIGEST)
    for _ in range(10):
        stack.submit_all([("t.decline", None, {})] * 1000)
    until(lambda: stack.value("SELECT count(*) FROM tasks WHERE status = 'failed'") == 10_000, 200, "ten thousand failures")
    until(lambda: stack.value("SELECT count(*) FROM digest_items") == 0, 30, "the last digest")
    until(lambda: stack.value("SELECT count(*) FROM deliveries WHERE status <> 'delivered'") == 0, 30, "all digests to be delivered")
    sent = stack.witnessed("digest", "route/night")
    assert sum(int(line[3]) for line in sent) == 10_000
    assert max(int(line[4]) for line in sent) == 5
    took = stack.value("SELECT EXTRACT(epoch FROM max(finished_at) - min(created_at)) FROM tasks")
    assert len(sent) <= float(took) / 10 + 3, "one at once, then one in ten seconds"
    assert column(stack, "SELECT DISTINCT event FROM deliveries") == ["digest"]


def test_the_events_of_each_task_arrive_in_their_order(start: Callable[..., Stack]) -> None:
    stack = start(EVERY)
    tasks = stack.submit_all([("t.echo", {"word": "x"}, {})] * 20)
    until(lambda: stack.value("SELECT count(*) FROM deliveries WHERE status = 'delivered'") == 60, 60, "all deliveries")
    for task in tasks:
        assert [line[2] for line in stack.witnessed("notified", task)] == ["task.submitted", "task.started", "task.succeeded"]


def test_a_receiver_that_is_gone_gets_no_more_until_its_route_is_on_again_and_operators_are_told(start: Callable[..., Stack]) -> None:
    stack = start(GONE)
    first = stack.submit("t.echo", {"word": "x"})
    until(lambda: stack.value("SELECT disabled_at FROM routes WHERE name = 'closed'"), 30, "the route to be switched off")
    until(lambda: "route.switched_off" in stack.log("worker"), what="the worker's word of it")
    until(lambda: stack.witnessed("notified", "delivery.dead"), 30, "the operators' message")
    stack.wait(stack.submit("t.echo", {"word": "y"}))
    assert column(stack, "SELECT task_id FROM deliveries WHERE route = 'closed'") == [first]
    assert stack.value("SELECT disabled_reason FROM routes WHERE name = 'closed'") == "gone: no more of this"
    with stack.engine.begin() as connection:
        assert enable(connection, "closed")
    last = stack.submit("t.echo", {"word": "z"})
    until(lambda: stack.value("SELECT count(*) FROM deliveries WHERE task_id = :id", id=last), 30, "the route")


def test_a_submissions_own_notifier_is_told_by_the_worker(start: Callable[..., Stack]) -> None:
    stack = start("", TASKYARD_DELIVERIES__SUBSCRIPTIONS="witness")
    wishes = [{"notifier": "witness", "events": ["task.submitted", "task.succeeded"], "options": {}}]
    task = stack.submit_as(notify=wishes)
    until(lambda: len(stack.witnessed("notified", task)) == 2, 30, "both messages")
    assert [line[2] for line in stack.witnessed("notified", task)] == ["task.submitted", "task.succeeded"]


def test_a_notifier_that_submissions_may_not_name_any_more_is_not_used(start: Callable[..., Stack]) -> None:
    stack = start("")
    task = stack.submit_as(notify=[{"notifier": "witness", "events": ["task.succeeded"], "options": {}}])
    until(lambda: column(stack, "SELECT status FROM deliveries") == ["dead"], 30, "the end of the delivery")
    assert stack.witnessed("notified", task) == []
    assert "may not name" in stack.value("SELECT tries -> -1 ->> 'detail' FROM deliveries")


def test_a_killed_worker_is_told_of(start: Callable[..., Stack]) -> None:
    stack = start(GONE)
    stack.start("second", "taskyard", "worker")
    stack.ready(2)
    for process in stack.family("second"):
        process.kill()
    until(lambda: stack.witnessed("notified", "worker.lost"), 60, "the message")
    assert len(column(stack, "SELECT 1 FROM events WHERE type = 'worker.lost'")) == 1
