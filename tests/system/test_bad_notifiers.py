"""Notifiers that answer nonsense, hang, block or exit: each fails alone, and handlers do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.stack import Stack, cloned, until

pytestmark = pytest.mark.one_pair

ROUTE = """
[[routes]]
name = "{name}"
notifier = "{notifier}"
events = ["task.succeeded"]
tags = ["{name}"]
[routes.options]
{options}
"""
ROUTES = {
    "good": ("witness", ""),
    "nul": ("witness", 'answer = "nul"'),
    "never": ("witness", 'answer = "never"'),
    "exit": ("witness", 'answer = "exit"'),
    "hang": ("witness", 'answer = "hang"'),
    "block": ("blocker", ""),
    "deaf": ("blocker", "deaf = true"),
}
#: How each route's first try is kept.
TRIES = {
    "nul": ("delivered", "a\\0b"),
    "never": ("failed", "retry-later: a\\0b"),
    "exit": ("failed", "SystemExit: 1"),
    "hang": ("failed", "TimeoutError"),
    "block": ("failed", "timeout: the notifier did not answer in time"),
    "deaf": ("failed", "timeout: the notifier did not answer in time"),
}


@pytest.fixture(scope="module")
def stack(postgres_url: str, template: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    (folder / "taskyard.toml").write_text("".join(ROUTE.format(name=name, notifier=n, options=o) for name, (n, o) in ROUTES.items()))
    settings = {"WORKER__PROCESSES": "1", "DELIVERIES__TIMEOUT": "1", "DELIVERIES__CONCURRENCY": "2", "DELIVERIES__MAX_ATTEMPTS": "1"}
    with cloned(postgres_url, template) as database_url:
        made = Stack(database_url, broker_url, folder, **{f"TASKYARD_{name}": value for name, value in settings.items()})
        made.env["TASKYARD_CONFIG"] = str(folder / "taskyard.toml")
        made.start("dispatcher")
        made.start("worker")
        yield made.ready()
        made.close()


def _tries(stack: Stack, route: str) -> list[dict[str, Any]]:
    return list(stack.value("SELECT tries FROM deliveries WHERE route = :route ORDER BY id DESC LIMIT 1", route=route) or [])


@pytest.mark.parametrize("route", TRIES)
def test_a_bad_notifier_fails_alone_and_is_recorded_plainly(stack: Stack, route: str) -> None:
    gate = stack.gate()
    handler = stack.submit("t.agated", gate.payload())
    stack.wait(handler, "running")
    # More than there are threads and places: what hangs must give them back.
    for _ in range(4):
        stack.submit("t.asleep", {"seconds": 0}, tags=[route])
    (first,) = until(partial(_tries, stack, route), what="the record of its try")
    assert (first["outcome"], first["detail"]) == TRIES[route]
    good = stack.submit("t.asleep", {"seconds": 0}, tags=["good"])
    until(partial(stack.witnessed, "notified", good), 40, "another's notification")
    gate.open()
    row = stack.wait(handler)
    assert (row["status"], row["attempt"], row["lost"]) == ("succeeded", 1, 0), "no handler shares a process with notifiers"
    finished = "SELECT count(*) FROM deliveries WHERE route = :route AND status IN ('delivered', 'dead')"
    until(lambda: stack.value(finished, route=route) == 4, 40, "the end of all its tries")
