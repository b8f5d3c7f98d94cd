"""From a task's event to the receiver: routes, tries and what is kept of them, on real roles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from taskyard.dispatch.app import delivery_queue
from taskyard.settings import BrokerSettings
from tests.ground import make_anew
from tests.stack import QUICK, Stack, until

ROUTES = """
[[routes]]
name = "ends"
notifier = "witness"
events = ["task.succeeded", "task.failed"]
types = ["t.e*", "t.refuse"]

[[routes]]
name = "third try"
notifier = "witness"
events = ["task.succeeded"]
tags = ["flaky"]
[routes.options]
failures = 2

[[routes]]
name = "never"
notifier = "witness"
events = ["task.succeeded"]
tags = ["dead"]
[routes.options]
failures = 99
"""


@pytest.fixture
def stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "taskyard.toml").write_text(ROUTES)
    made = Stack(
        database_url,
        broker_url,
        tmp_path,
        **QUICK,
        TASKYARD_CONFIG=str(tmp_path / "taskyard.toml"),
        TASKYARD_DELIVERIES__BASE="0.1",
        TASKYARD_DELIVERIES__FACTOR="1",
        TASKYARD_DELIVERIES__MAX_ATTEMPTS="4",
    )
    made.start("dispatcher")
    made.start("worker")
    yield made.ready()
    made.close()


def _deliveries(stack: Stack, route: str, status: str) -> list[dict[str, Any]]:
    with stack.engine.connect() as connection:
        statement = text("SELECT * FROM deliveries WHERE route = :route AND status = :status")
        return [dict(row) for row in connection.execute(statement, {"route": route, "status": status}).mappings()]


def test_events_that_a_route_wants_arrive_and_others_do_not(stack: Stack) -> None:
    wanted = [stack.submit("t.echo", {"word": "x"}), stack.submit("t.refuse")]
    unwanted = stack.submit("t.asleep", {"seconds": 0})
    for task in wanted:
        until(partial(stack.witnessed, "notified", task))
    assert stack.witnessed("notified", wanted[0])[0][2] == "task.succeeded"
    assert stack.witnessed("notified", wanted[1])[0][2] == "task.failed"
    stack.wait(unwanted)
    assert stack.value("SELECT count(*) FROM deliveries WHERE task_id = :id", id=unwanted) == 0


def test_notifications_go_on_after_their_queue_was_made_anew_behind_the_workers_back(stack: Stack, broker_url: str) -> None:
    make_anew(broker_url, delivery_queue(BrokerSettings(url=SecretStr(broker_url), prefix=stack.prefix)))
    task = stack.submit("t.echo", {"word": "x"})
    until(partial(stack.witnessed, "notified", task))


def test_a_failed_try_is_repeated_and_each_try_is_recorded(stack: Stack) -> None:
    stack.submit("t.asleep", {"seconds": 0}, tags=["flaky"])
    (row,) = until(lambda: _deliveries(stack, "third try", "delivered"))
    assert row["attempt"] == 3
    assert [(entry["attempt"], entry["outcome"]) for entry in row["tries"]] == [(1, "failed"), (2, "failed"), (3, "delivered")]
    assert "not yet (1)" in row["tries"][0]["detail"]
    ids = {line[4] for line in stack.witnessed("notified", row["task_id"])}
    assert ids == {f"dlv_{row['id']}"}


def test_after_the_last_try_a_delivery_is_kept_as_dead_and_tasks_went_on(stack: Stack) -> None:
    task = stack.submit("t.asleep", {"seconds": 0}, tags=["dead"])
    assert stack.wait(task)["status"] == "succeeded"
    (row,) = until(lambda: _deliveries(stack, "never", "dead"))
    assert (row["attempt"], row["next_try_at"]) == (4, None)
