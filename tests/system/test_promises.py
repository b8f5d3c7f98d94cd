"""What docs/guarantees.md promises in figures, with default limits, on real roles and servers of their own."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.ground import Ground, free_port, kinds
from tests.stack import Stack, until
from tests.system.test_stops import Clients, serve

one_pair = pytest.mark.parametrize("ground_kind", kinds()[-1:], indirect=True)
#: Seconds that the broker is down below 50 submissions a second. The long form: TASKYARD_TEST_OUTAGE=60.
OUTAGE = float(os.environ.get("TASKYARD_TEST_OUTAGE", "10"))


@one_pair
def test_fifty_tasks_of_a_killed_worker_run_again_at_a_new_one(hard: Stack) -> None:
    stack = hard
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    tasks = stack.submit_all([("t.agated", stack.gate().payload("fifty"), {})] * 50)
    stack.submit("t.grandchild", {"word": "orphan"}, timeout=60)
    until(lambda: len(stack.witnessed("agated")) == 50 and stack.witnessed("grandchild"), what="50 running tasks")
    family = stack.family("worker")
    stack.stop("worker", signal.SIGKILL)
    stack.start("worker")
    until(lambda: len(stack.witnessed("agated")) >= 100, what="50 tasks to run again")
    assert {(stack.task(task)["status"], stack.task(task)["fence"], stack.task(task)["attempt"]) for task in tasks} == {("running", 2, 1)}
    assert [[line[-1] for line in stack.witnessed("agated", task)] for task in tasks] == [["1", "2"]] * 50
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


@one_pair
def test_while_the_broker_is_down_fifty_submissions_a_second_are_taken_and_all_are_done_after(hard: Stack, healed: Ground) -> None:
    stack = hard
    port = free_port()
    serve(stack, "web", port)
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    with Clients([port], 50).at_work() as clients:
        until(lambda: len(clients.accepted) > 50, 60, "load")
        before = len(clients.accepted)
        healed.broker.kill()
        until(lambda: len(clients.accepted) - before >= 50 * OUTAGE, 20 + 5 * OUTAGE, "submissions without a broker")
        healed.broker.start()
    assert clients.refused == []
    open_ = "SELECT count(*) FROM tasks WHERE status <> 'succeeded'"
    until(lambda: stack.value(open_) == 0, 60 + 3 * OUTAGE, "the end of all tasks")
    assert stack.value("SELECT count(*) FROM tasks") == len(clients.accepted)
    assert stack.value("SELECT count(*) FROM tasks WHERE attempt <> 1 OR lost <> 0") == 0
