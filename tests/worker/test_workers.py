"""Workers as a whole: the order of work, their stop, their death, and how they are started."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from kombu import Connection
from pydantic import SecretStr
from sqlalchemy import text

from taskyard.dispatch.app import broker_queue, delivery_queue
from taskyard.settings import BrokerSettings
from tests.stack import Stack, until

QUICK = {"TASKYARD_DISPATCH__WORKER_SILENCE": "6", "TASKYARD_WORKER__HEARTBEAT": "0.3", "TASKYARD_DISPATCH__TICK": "0.2"}


def _up(stack: Stack, **env: str) -> Stack:
    stack.env.update(env)
    stack.start("dispatcher")
    stack.start("worker")
    return stack.ready()


def test_the_more_urgent_runs_first_whatever_the_broker_has_in_front(own_stack: Stack) -> None:
    stack = _up(own_stack)
    gate = stack.gate()
    stack.wait(stack.submit("t.gated", gate.payload()), "running")
    low = stack.submit("t.echo", {"word": "low"}, priority=0)
    # The less urgent one is in the broker already when the other one comes.
    stack.wait(low, "queued", "pending")
    high = stack.submit("t.echo", {"word": "high"}, priority=9)
    gate.open()
    stack.wait(low)
    stack.wait(high)
    assert [line[2] for line in stack.witnessed("echo")] == ["high", "low"]


def test_ten_priorities_run_in_their_order(own_stack: Stack) -> None:
    stack = _up(own_stack)
    gate = stack.gate()
    stack.wait(stack.submit("t.gated", gate.payload()), "running")
    tasks = [stack.submit("t.echo", {"word": f"p{p}"}, priority=p) for p in (3, 7, 0, 9, 1, 5, 8, 2, 6, 4)]
    gate.open()
    for task in tasks:
        stack.wait(task)
    assert [line[2] for line in stack.witnessed("echo")] == [f"p{p}" for p in range(9, -1, -1)]


def test_a_paused_queue_starts_nothing_and_a_resumed_one_goes_on(own_stack: Stack) -> None:
    stack = _up(own_stack)
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO queues (name, paused_at) VALUES ('default', now())")
    task = stack.submit("t.echo", {"word": "patience"})
    other = stack.submit("t.aecho", {"word": "another queue"})
    assert stack.wait(other)["status"] == "succeeded"
    assert stack.task(task)["status"] == "pending"
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE queues SET paused_at = NULL")
    assert stack.wait(task)["status"] == "succeeded"


@pytest.mark.one_pair
def test_a_task_whose_type_no_worker_has_is_parked_and_says_so(own_stack: Stack) -> None:
    stack = _up(own_stack)
    with stack.engine.begin() as connection:
        connection.exec_driver_sql(
            """INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts)
            VALUES (gen_random_uuid(), 'later.deployed', 'default', 'sync', 5, 'pending', '{}', 60, 1)"""
        )
    id_ = stack.value("SELECT id FROM tasks")
    until(lambda: stack.events(id_) == ["task.parked"])
    row = stack.task(id_)
    assert (row["status"], row["attempt"]) == ("pending", 0)
    assert row["next_run_at"] > row["updated_at"]
    data = stack.value("SELECT data FROM events WHERE task_id = :id", id=id_)
    assert data["type"] == "later.deployed"


def test_sigterm_lets_a_short_task_end_and_hands_a_long_one_back_without_spending_its_attempt(own_stack: Stack) -> None:
    stack = _up(own_stack, TASKYARD_WORKER__STOP_GRACE="5")
    gate = stack.gate()
    short = stack.submit("t.agated", gate.payload())
    long = stack.submit("t.asleep", {"seconds": 50})
    sync = stack.submit("t.sleep", {"seconds": 50})
    for task in (short, long, sync):
        stack.wait(task, "running")
    family = stack.family("worker")
    stack.stop("dispatcher")
    stack.processes["worker"].terminate()
    until(lambda: "worker.drains" in stack.log("worker"), what="the start of the grace")
    gate.open()
    assert stack.stop("worker") == 0
    assert stack.task(short)["status"] == "succeeded"
    for task in (long, sync):
        row = stack.task(task)
        assert (row["status"], row["attempt"], row["fence"], row["worker_id"]) == ("pending", 0, 1, None)
        assert stack.events(task) == ["task.submitted", "task.started", "task.released"]
    assert stack.workers() == 0
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_what_a_killed_worker_ran_is_run_by_another_and_no_process_is_left(own_stack: Stack) -> None:
    stack = _up(own_stack, **QUICK)
    gate = stack.gate()
    task = stack.submit("t.agated", gate.payload())
    stack.wait(task, "running")
    family = stack.family("worker")
    stack.stop("worker", signal.SIGKILL)
    until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], what="the end of its children")
    stack.start("worker")
    gate.open()
    row = stack.wait(task)
    assert (row["status"], row["attempt"], row["fence"], row["lost"]) == ("succeeded", 1, 2, 1)
    assert stack.events(task) == ["task.submitted", "task.started", "task.lost", "task.started", "task.succeeded"]


def test_a_worker_that_slept_past_the_silence_limit_changes_nothing_and_works_again(own_stack: Stack) -> None:
    stack = _up(own_stack, **QUICK)
    gate = stack.gate()
    task = stack.submit("t.gated", gate.payload("stale"))
    stack.wait(task, "running")
    sleeper = stack.processes["worker"]
    sleeper.send_signal(signal.SIGSTOP)
    stack.processes["asleep"] = stack.processes.pop("worker")
    stack.start("worker")
    gate.open()
    row = stack.wait(task)
    assert (row["status"], row["fence"]) == ("succeeded", 2)
    sleeper.send_signal(signal.SIGCONT)
    until(lambda: stack.workers() == 2, 10, "the woken worker's new registration")
    assert stack.task(task)["version"] == row["version"], "what the stale run said was refused"
    for word in "abcd":
        assert stack.wait(stack.submit("t.echo", {"word": word}))["status"] == "succeeded"


def test_what_waited_for_a_process_until_its_worker_was_given_up_is_not_started(own_stack: Stack) -> None:
    stack = own_stack
    # The first message may come before the worker has heard that it was given up, and is for nothing then.
    stack.env.update(QUICK | {"TASKYARD_DISPATCH__SWEEP_AFTER": "1"})
    stack.start("worker")
    until(lambda: stack.workers() == 1)
    worker = psutil.Process(stack.processes["worker"].pid)
    (zygote,) = [child for child in worker.children() if "taskyard_worker.zygote" in child.cmdline()]
    zygote.suspend()
    task = stack.submit("t.asleep", {"seconds": 0})
    # So it gets a process of its own, for which it has to wait.
    with stack.engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET lost = 2 WHERE id = :id"), {"id": task})
    stack.start("dispatcher")
    stack.wait(task, "running")
    worker.suspend()
    until(lambda: "task.lost" in stack.events(task))
    worker.resume()
    until(lambda: stack.task(task)["fence"] == 2, 20, "its claim by the worker under its new name")
    zygote.resume()
    row = stack.wait(task)
    assert (row["status"], row["fence"]) == ("succeeded", 2)
    # The forks are done in the order in which they were asked for.
    assert stack.wait(stack.submit("t.asleep", {"seconds": 0}))["status"] == "succeeded"
    assert [line[-1] for line in stack.witnessed("asleep", task)] == ["2"]


@pytest.mark.one_pair
def test_killed_children_and_a_killed_zygote_are_replaced(own_stack: Stack) -> None:
    stack = _up(own_stack)
    gate = stack.gate()
    task = stack.submit("t.agated", gate.payload())
    stack.wait(task, "running")
    for process in stack.family("worker")[1:]:
        os.kill(process.pid, signal.SIGKILL)
    gate.open()
    assert stack.wait(task)["status"] == "succeeded"
    assert stack.events(task).count("task.lost") == 1
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"


@pytest.mark.one_pair
def test_plain_celery_starts_a_worker_and_its_options_work(own_stack: Stack) -> None:
    own_stack.start("dispatcher")
    own_stack.start("worker", "celery", "-A", "taskyard_worker", "worker", "-Q", "io", "-c", "1", "-n", "plain@%h")
    stack = own_stack.ready()
    assert stack.wait(stack.submit("t.aecho", {"word": "celery"}))["status"] == "succeeded"
    assert str(stack.value("SELECT name FROM workers")).startswith("plain@")
    assert stack.value("SELECT queues FROM workers") == ["io"]
    left = stack.submit("t.echo")
    assert stack.wait(stack.submit("t.aecho", {"word": "after"}))["status"] == "succeeded"
    assert stack.task(left)["status"] == "pending", "no worker serves its queue"


def test_a_garbled_or_forged_message_harms_nothing(own_stack: Stack) -> None:
    stack = _up(own_stack)
    body = '[[["no uuid"]], {}, {}]'
    forged = [
        ("taskyard.run", '[[["11111111-1111-7111-8111-111111111111"]], {}, {}]'),
        ("taskyard.run", body),
        ("taskyard.run", "[[], {}, {}]"),
        ("taskyard.deliver", '[[["x"]], {}, {}]'),
        ("taskyard.deliver", "[[[123456]], {}, {}]"),
        ("os.system", '[["true"], {}, {}]'),
        ("taskyard.run", "{not json"),
    ]
    broker = BrokerSettings(url=SecretStr(stack.env["CELERY_BROKER_URL"]), prefix=stack.prefix)
    targets = [broker_queue(broker, "default", "sync"), broker_queue(broker, "default", "async"), delivery_queue(broker)]
    with Connection(stack.env["CELERY_BROKER_URL"]) as connection:
        producer = connection.Producer()
        for number, (name, text_) in enumerate(forged):
            for queue in targets:
                producer.publish(
                    text_,
                    exchange=stack.prefix,
                    routing_key=queue.name,
                    declare=[queue],
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers={"task": name, "id": f"forged-{number}", "lang": "py", "root_id": None, "parent_id": None, "group": None},
                )
    for word in "abc":
        assert stack.wait(stack.submit("t.echo", {"word": word}))["status"] == "succeeded"
        assert stack.wait(stack.submit("t.asleep", {"seconds": 0}))["status"] == "succeeded"
    assert stack.processes["worker"].poll() is None
