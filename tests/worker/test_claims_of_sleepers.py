"""What a worker does with claims that may not be its own any more, and with hints that come twice."""

from __future__ import annotations

import signal
from contextlib import closing
from uuid import uuid4

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from taskyard import lifecycle
from taskyard.database import sync_engine
from taskyard.database_errors import is_outage
from taskyard.dispatch.app import create_celery
from taskyard.dispatch.publisher import Publisher
from taskyard.settings import BrokerSettings, DatabaseSettings, Settings
from tests.stack import Stack, until

QUICK = {"TASKYARD_DISPATCH__WORKER_SILENCE": "2", "TASKYARD_WORKER__HEARTBEAT": "0.3", "TASKYARD_DISPATCH__TICK": "0.2", "TASKYARD_DISPATCH__SWEEP_AFTER": "2"}


def test_a_worker_that_slept_over_its_claim_starts_nothing_that_another_has_done(own_stack: Stack) -> None:
    stack = own_stack
    stack.env.update(QUICK)
    stack.start("dispatcher")
    sleeper = stack.start("sleeper", "taskyard", "worker", env={"TASKYARD_FAILPOINTS": "claim.committed=stop"})
    stack.ready()
    tasks = [stack.submit("t.echo", {"word": "sync"}), stack.submit("t.aecho", {"word": "async"})]
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, 30, "the stop")
    stack.start("worker")
    done = [stack.wait(task, seconds=40) for task in tasks]
    sleeper.send_signal(signal.SIGCONT)
    # It is given up, starts anew, and works: by then it would have started what it had claimed.
    until(lambda: stack.workers() == 2, 30, "the sleeper's return")
    stack.stop("worker")
    assert stack.wait(stack.submit("t.echo", {"word": "awake"}))["status"] == "succeeded"
    for word, task in zip(("echo", "aecho"), done, strict=True):
        assert [line[4] for line in stack.witnessed(word, task["id"])] == [str(task["fence"])]
    assert 2 in {task["fence"] for task in done}


@pytest.mark.one_pair
def test_a_worker_that_freezes_between_its_claim_and_its_commit_holds_up_nobody(own_stack: Stack) -> None:
    stack = own_stack
    stack.env.update(QUICK)
    task = stack.submit("t.echo", {"word": "thawed"})
    frozen = sync_engine(DatabaseSettings(url=SecretStr(stack.env["DATABASE_URL"])), role="worker")
    with frozen.connect() as connection:
        worker = uuid4()
        lifecycle.register_worker(connection, worker, "frozen", ["default"], {})
        lifecycle.dispatch(connection, "default", "sync", 1, 60)
        connection.commit()
        assert len(lifecycle.claim(connection, worker, "default", "sync", [task], ["t.echo"], 1)) == 1
        stack.start("dispatcher")
        stack.start("worker")
        assert stack.wait(task, seconds=60)["status"] == "succeeded"
        with pytest.raises(DBAPIError) as ended:
            connection.commit()
    assert is_outage(ended.value)
    frozen.dispose()


def test_an_id_that_comes_twice_in_a_message_harms_no_other(own_stack: Stack) -> None:
    stack = own_stack
    # A message that is not settled takes a place of these for ever.
    stack.env["TASKYARD_WORKER__ASYNC_SLOTS"] = "10"
    tasks = stack.submit_all([("t.aecho", {"word": str(number)}, {}) for number in range(40)])
    with stack.engine.begin() as connection:
        hints = {hint.id: hint for hint in lifecycle.dispatch(connection, "io", "async", len(tasks), 60).hints}
    settings = Settings(
        database=DatabaseSettings(url=SecretStr(stack.env["DATABASE_URL"])),
        broker=BrokerSettings(url=SecretStr(stack.env["CELERY_BROKER_URL"]), prefix=stack.prefix),
    )
    twice = [[hints[first], hints[first], hints[first]] for first in tasks[::2]]
    once = [[hints[second]] for second in tasks[1::2]]
    with closing(Publisher(create_celery(settings), settings.broker)) as publisher:
        publisher.publish("io", "async", [bundle for pair in zip(twice, once, strict=True) for bundle in pair])
    stack.start("worker")
    # For what the worker has no room for, and gives back.
    stack.start("dispatcher")
    for task in tasks:
        assert stack.wait(task)["fence"] == 1
