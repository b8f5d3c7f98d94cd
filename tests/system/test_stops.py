"""SIGTERM for every role, under load: nothing is lost, and nothing is run again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.ground import free_port, kinds
from tests.stack import Stack, until

RATE = 20
one_pair = pytest.mark.parametrize("ground_kind", kinds()[-1:], indirect=True)


class Clients:
    """Somebody who submits all the time, to whichever service answers, as a load balancer sees to it."""

    def __init__(self, ports: list[int], rate: float) -> None:
        self._ports = ports
        self._rate = rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._submit)
        self.accepted: list[str] = []
        self.refused: list[str] = []

    @contextmanager
    def at_work(self) -> Iterator[Clients]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(60)

    def _submit(self) -> None:
        kinds: list[dict[str, Any]] = [{"type": "t.asleep", "payload": {"seconds": 0.2}}, {"type": "t.echo", "payload": {"word": "load"}}]
        due = time.monotonic()
        with httpx2.Client(timeout=20) as client:
            while not self._over.wait(max(0.0, due - time.monotonic())):
                self._one(client, kinds[len(self.accepted) % 2])
                due += 1 / self._rate

    def _one(self, client: httpx2.Client, task: dict[str, Any]) -> None:
        for port in self._ports:
            try:
                answer = client.post(f"http://127.0.0.1:{port}/api/v1/tasks", json=task)
            except httpx2.ConnectError:
                continue
            except httpx2.HTTPError as error:
                self.refused.append(repr(error))
                return
            (self.accepted if answer.status_code == 201 else self.refused).append(answer.json().get("id") or answer.text)
            return
        self.refused.append("no service answers")


def serve(stack: Stack, name: str, port: int) -> None:
    """Start a service, and wait until it is ready."""
    stack.start(name, "taskyard", "serve", "--port", str(port))
    until(lambda: is_ready(port), 60, name)


def is_ready(port: int) -> bool:
    """Does a service answer that it is ready?"""
    try:
        return bool(httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200)
    except httpx2.HTTPError:
        return False


def _renew(stack: Stack, role: str) -> None:
    """Start a second one beside the first, and then stop that."""
    stack.start(f"{role} 2", "taskyard", role)
    what = "worker.ready" if role == "worker" else "dispatcher.started"
    until(lambda: what in stack.log(f"{role} 2"), 60, f"the new {role}")
    assert stack.stop(role) == 0


@one_pair
def test_a_rolling_restart_of_all_roles_under_load_loses_nothing_and_retries_nothing(hard: Stack) -> None:
    stack = hard
    stack.env["TASKYARD_WORKER__STOP_GRACE"] = "20"
    ports = [free_port(), free_port()]
    serve(stack, "web", ports[0])
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    with Clients(ports, RATE).at_work() as clients:
        until(lambda: len(clients.accepted) > 2 * RATE, 60, "load")
        serve(stack, "web 2", ports[1])
        assert stack.stop("web") == 0
        _renew(stack, "dispatcher")
        _renew(stack, "worker")
        after = len(clients.accepted)
        until(lambda: len(clients.accepted) > after + RATE, 60, "load after the restarts")
    assert clients.refused == []
    open_ = "SELECT count(*) FROM tasks WHERE status NOT IN ('succeeded', 'failed', 'cancelled', 'expired')"
    until(lambda: stack.value(open_) == 0, 60, "the end of all tasks")
    assert stack.value("SELECT count(*) FROM tasks WHERE status = 'succeeded'") == len(clients.accepted) == len(set(clients.accepted))
    assert stack.value("SELECT count(*) FROM tasks WHERE attempt <> 1 OR lost <> 0 OR fence <> 1") == 0
    assert stack.value("SELECT count(*) FROM events WHERE type NOT IN ('task.submitted', 'task.started', 'task.succeeded')") == 0
    assert stack.value("SELECT count(*) FROM workers") == 1


@one_pair
def test_a_service_that_is_stopped_answers_what_it_has_taken(hard: Stack) -> None:
    stack = hard
    port = free_port()
    serve(stack, "web", port)
    slow = stack.submit("t.echo")
    answers: list[int] = []
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1 FROM tasks FOR UPDATE")
        patch = threading.Thread(
            target=lambda: answers.append(httpx2.patch(f"http://127.0.0.1:{port}/api/v1/tasks/{slow}", json={"priority": 9}, timeout=20).status_code)
        )
        patch.start()
        until(lambda: stack.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"))
        stack.processes["web"].terminate()
        until(lambda: not is_ready(port), 10, "an end to new requests")
    patch.join(20)
    assert answers == [200]
    assert stack.stop("web") == 0
    assert stack.task(slow)["priority"] == 9
