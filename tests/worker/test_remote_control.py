"""Flower's buttons and what Flower shows: each works or answers why not, and no task that succeeded is shown as failed."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from taskyard_worker.outcomes import shown
from taskyard_worker.pool import SHOWN, _show
from taskyard_worker.remote import REFUSED
from tests.stack import Stack, until

pytestmark = pytest.mark.one_pair


@pytest.fixture
def stack(own_stack: Stack) -> Stack:
    own_stack.start("dispatcher")
    own_stack.start("worker")
    return own_stack.ready()


@pytest.fixture
def flower(stack: Stack) -> Iterator[Celery]:
    """Somebody who sends what Flower sends."""
    app = Celery(broker=stack.env["CELERY_BROKER_URL"], set_as_current=False)
    yield app
    app.close()


def ask(flower: Celery, stack: Stack, command: str, **arguments: Any) -> dict[str, Any]:
    """The worker's answer. The broker is shared: other workers may answer too."""
    name = stack.value("SELECT name FROM workers")

    def answered() -> Any:
        replies = flower.control.broadcast(command, arguments=arguments, destination=[name], reply=True, timeout=3.0)
        return next((reply[name] for reply in replies or () if name in reply), None)

    return dict(until(answered, 60, f"the answer to {command}"))


def test_revoke_cancels_a_task_that_waits_and_one_that_runs(stack: Stack, flower: Celery) -> None:
    running = stack.submit("t.sleep", {"seconds": 50})
    stack.wait(running, "running")
    waiting = stack.submit("t.sleep", {"seconds": 50})
    for task in (waiting, running):
        assert "ok" in ask(flower, stack, "revoke", task_id=[str(task)], terminate=task == running, signal="SIGTERM")
        assert stack.wait(task)["status"] == "cancelled"
    with stack.engine.connect() as connection:
        noted = connection.exec_driver_sql("SELECT target, address, key_id FROM audit WHERE verb = 'task.cancel'").all()
    assert {row.target for row in noted} == {str(waiting), str(running)}
    assert all(row.address.startswith("broker: ") and not row.key_id for row in noted)
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    assert "NotImplementedError" not in stack.log("worker")


def test_a_revoked_task_that_is_retried_by_a_person_runs(stack: Stack, flower: Celery) -> None:
    """Celery's own revoke would drop its messages for hours."""
    waiting = stack.submit("t.echo", delay=3600)
    ask(flower, stack, "revoke", task_id=str(waiting))
    assert stack.wait(waiting)["status"] == "cancelled"
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET status = 'pending', run_at = NULL, finished_at = NULL, cancel_requested_at = NULL")
    assert stack.wait(waiting, seconds=40)["status"] == "succeeded"


def test_what_is_no_task_is_refused_and_an_ended_task_stays_as_it_is(stack: Stack, flower: Celery) -> None:
    done = stack.submit("t.echo")
    stack.wait(done)
    assert "ok" in ask(flower, stack, "revoke", task_id=str(done))
    assert "no-such-message+3" in ask(flower, stack, "revoke", task_id="no-such-message+3")["error"]
    assert "delivery-17" in ask(flower, stack, "terminate", task_id="delivery-17", signal="SIGKILL")["error"]
    assert stack.task(done)["status"] == "succeeded"


def test_every_button_that_does_not_fit_is_refused_with_what_to_do_instead(stack: Stack, flower: Celery) -> None:
    arguments: dict[str, dict[str, Any]] = defaultdict(dict)
    arguments |= {"pool_grow": {"n": 1}, "autoscale": {"min": 1, "max": 4}, "add_consumer": {"queue": "x"}, "cancel_consumer": {"queue": "default"}}
    arguments |= {"rate_limit": {"task_name": "taskyard.run", "rate_limit": "1/m"}, "time_limit": {"task_name": "taskyard.run", "hard": 1}}
    for command, why in REFUSED.items():
        assert ask(flower, stack, command, **arguments[command]) == {"error": why}
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    assert "Traceback" not in stack.log("worker")


def test_shutdown_stops_the_worker_as_sigterm_does(stack: Stack, flower: Celery) -> None:
    task = stack.submit("t.asleep", {"seconds": 50})
    stack.wait(task, "running")
    flower.control.shutdown(destination=[stack.value("SELECT name FROM workers")])
    assert stack.processes["worker"].wait(60) == 0
    assert (stack.task(task)["attempt"], stack.events(task)[-1]) == (0, "task.released")


def test_flower_sees_how_each_task_ended_at_last(stack: Stack, flower: Celery) -> None:
    state = flower.events.State()
    heard = threading.Event()

    def listen() -> None:
        with flower.connection_for_read() as connection:
            receiver = flower.events.Receiver(connection, handlers={"*": on_event})
            while not heard.is_set():
                try:
                    for _ in receiver.consume(limit=None, timeout=0.5, wakeup=False):
                        pass
                except TimeoutError:
                    continue

    def on_event(event: dict[str, Any]) -> None:
        state.event(event)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        ask(flower, stack, "enable_events")
        tasks = {name: stack.submit(name) for name in ("t.echo", "t.flaky", "t.fail", "t.refuse")}
        ended = {name: stack.wait(task, seconds=60)["status"] for name, task in tasks.items()}
        assert ended == {"t.echo": "succeeded", "t.flaky": "succeeded", "t.fail": "failed", "t.refuse": "failed"}
        expected = {str(tasks[name]): "SUCCESS" if status == "succeeded" else "FAILURE" for name, status in ended.items()}
        until(lambda: {id_: task.state for id_, task in state.tasks.items() if id_ in expected} == expected, 60, f"{expected}")
    finally:
        heard.set()
        listener.join(10)


class Request:
    """What Celery would send events with."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send_event(self, name: str, **_: Any) -> None:
        self.sent.append(name)


@pytest.mark.parametrize("state", [*SHOWN, "ignored", "withdrawn", "returned", "stale", "error", "running"])
def test_a_message_for_many_tasks_is_never_shown_as_failed(state: str) -> None:
    many, one = Request(), Request()
    _show(many, state, 5, 0.1)
    _show(one, state, 1, 0.1)
    assert many.sent == (["task-succeeded"] if state in SHOWN else [])
    assert one.sent == ([SHOWN[state]] if state in SHOWN else [])


def test_a_run_that_goes_on_is_shown_as_tried_again() -> None:
    raised, succeeded = {"outcome": "error", "error": {}}, {"outcome": "succeeded", "result": "1"}
    assert shown(raised, None, last_attempt=False, last_loss=False) == "retrying"
    assert shown(raised, None, last_attempt=True, last_loss=False) == "failed"
    assert shown(None, None, last_attempt=True, last_loss=False) == "retrying"
    assert shown(None, None, last_attempt=False, last_loss=True) == "failed"
    assert shown(None, "cancel", last_attempt=False, last_loss=False) == "cancelled"
    assert shown(succeeded, "timeout", last_attempt=False, last_loss=False) == "succeeded"
    assert shown({"outcome": "unstarted", "reason": "x"}, None, last_attempt=True, last_loss=True) not in SHOWN
