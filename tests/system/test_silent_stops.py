"""A role that is told to stop while a server that it uses says nothing any more ends all the same: before an orchestrator kills it."""

from __future__ import annotations

import pytest

from taskyard.stopping import OVERDUE
from tests.ground import Ground, free_port
from tests.stack import QUICK, Stack, until

from .test_stops import serve

#: Generous: each role's budget is 25 s at most with these settings. Without one, they took up to 93 s.
PATIENCE = 40.0


@pytest.fixture
def up(hard: Stack) -> Stack:
    """A dispatcher and a worker that have run something."""
    hard.env.update(QUICK)
    hard.start("dispatcher")
    hard.start("worker")
    hard.ready()
    hard.wait(hard.submit("t.echo", {"word": "before"}), seconds=40)
    return hard


@pytest.mark.parametrize("how", ["silent", "cut off"])
def test_an_idle_worker_and_a_dispatcher_stop_although_the_broker_says_nothing(up: Stack, healed: Ground, how: str) -> None:
    healed.to_broker.hang()
    if how == "cut off":
        # What is there is cut, and what is new is taken, and never answered.
        healed.to_broker.cut()
    for role in ("worker", "dispatcher"):
        up.processes[role].terminate()
    for role in ("worker", "dispatcher"):
        assert up.stop(role, seconds=PATIENCE) == 0, up.log(role)[-3000:]
    assert up.workers() == 0, "it took its leave of the database"


def test_a_worker_whose_task_runs_while_the_broker_is_silent_gets_its_grace(up: Stack, healed: Ground) -> None:
    up.env["TASKYARD_WORKER__STOP_GRACE"] = "20"
    up.stop("worker")
    up.start("worker")
    until(lambda: up.workers() == 1, 60, "the worker")
    task = up.submit("t.sleep", {"seconds": 6})
    up.wait(task, "running", seconds=40)
    healed.to_broker.hang()
    assert up.stop("worker", seconds=PATIENCE + 20) == 0
    assert up.task(task)["status"] == "succeeded"
    assert up.task(task)["attempt"] == 1


def test_roles_whose_database_says_nothing_end_within_their_budget(up: Stack, healed: Ground) -> None:
    up.env["TASKYARD_DATABASE__STATEMENT_TIMEOUT"] = "300"
    port = free_port()
    serve(up, "web", port)
    healed.to_postgres.hang()
    for role in ("web", "worker", "dispatcher"):
        up.processes[role].terminate()
    for role in ("web", "worker", "dispatcher"):
        status = up.stop(role, seconds=PATIENCE)
        assert status in (0, OVERDUE)
        assert (status == OVERDUE) == ("stop.overdue" in up.log(role))
