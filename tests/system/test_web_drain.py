"""A web process that is told to stop says so first: clients that heed its readiness lose no request, also on connections that are kept alive."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.ground import free_port, kinds
from tests.stack import Stack, until

from .test_stops import is_ready, serve

pytestmark = pytest.mark.parametrize("ground_kind", kinds()[-1:], indirect=True)

TASK = {"type": "t.echo", "payload": {"word": "load"}}
CLIENTS = 4


class Balancer:
    """Clients with connections that are kept alive, which send to whichever services said last that they are ready."""

    def __init__(self, ports: list[int]) -> None:
        self.ready: dict[int, bool] = dict.fromkeys(ports, False)
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._over = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[Balancer]:
        threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)] + [threading.Thread(target=self._look, args=(port,)) for port in self.ready]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def _look(self, port: int) -> None:
        while not self._over.wait(0.05):
            self.ready[port] = is_ready(port)

    def _send(self) -> None:
        turn = itertools.count()
        with httpx2.Client(timeout=30) as client:
            while not self._over.wait(0.005):
                if not (ports := [port for port, ready in self.ready.items() if ready]):
                    continue
                port = ports[next(turn) % len(ports)]
                try:
                    self.answers.append(client.post(f"http://127.0.0.1:{port}/api/v1/tasks", json=TASK).status_code)
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))


def test_a_rolling_restart_of_the_service_loses_no_request_of_clients_that_heed_readiness(hard: Stack) -> None:
    hard.env["TASKYARD_API__DRAIN_DELAY"] = "5"
    ports = [free_port(), free_port()]
    for number, port in enumerate(ports):
        serve(hard, f"web {number}", port)
    with Balancer(ports).at_work() as balancer:
        until(lambda: len(balancer.answers) > 50, 60, "load")
        for number, port in enumerate(ports):
            assert hard.stop(f"web {number}") == 0
            served = len(balancer.answers)
            serve(hard, f"web {number}", port)
            until(lambda served=served: len(balancer.answers) > served + 50, 60, "load on the other")  # type: ignore[misc]  # a lambda with a default
            until(lambda port=port: balancer.ready[port], 60, "its turn")  # type: ignore[misc]  # a lambda with a default
    assert balancer.failures == []
    assert set(balancer.answers) == {201}, "\n".join(hard.log(f"web {number}")[-20_000:] for number in range(len(ports)))
    assert hard.value("SELECT count(*) FROM tasks") == len(balancer.answers)


def test_while_it_drains_it_is_not_ready_and_answers_all_the_same_and_asks_for_new_connections(hard: Stack) -> None:
    hard.env["TASKYARD_API__DRAIN_DELAY"] = "3600"
    port = free_port()
    serve(hard, "web", port)
    base = f"http://127.0.0.1:{port}"
    with httpx2.Client(timeout=30) as client:
        assert "connection" not in client.post(f"{base}/api/v1/tasks", json=TASK).headers
        hard.processes["web"].terminate()
        until(lambda: not is_ready(port), 30, "503")
        ready = client.get(f"{base}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert ready.json()["parts"]["process"].startswith("stopping")
        assert "Retry-After" in ready.headers
        assert client.get(f"{base}/health/live").status_code == 200
        taken = client.post(f"{base}/api/v1/tasks", json=TASK)
        assert (taken.status_code, taken.headers["connection"]) == (201, "close")
        # The same signal again changes nothing; a person's Ctrl-C leaves the rest of the delay out.
        hard.processes["web"].terminate()
        assert client.post(f"{base}/api/v1/tasks", json=TASK).status_code == 201
    assert hard.stop("web", signal.SIGINT) == 0


def test_streams_and_waits_end_politely_when_the_delay_is_over(hard: Stack) -> None:
    hard.env["TASKYARD_API__DRAIN_DELAY"] = "1"
    port = free_port()
    serve(hard, "web", port)
    base = f"http://127.0.0.1:{port}/api/v1"
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(httpx2.post(f"{base}/tasks", json=TASK, headers={"Prefer": "wait=30"}, timeout=60).status_code))
    with httpx2.stream("GET", f"{base}/events", timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        waiting.start()
        until(lambda: hard.value("SELECT count(*) FROM tasks WHERE awaited"), 30, "the wait")
        hard.processes["web"].terminate()
        # Read to its end: a stream that is cut raises here.
        assert isinstance(list(lines), list)
    waiting.join(60)
    assert answers == [201]
    assert hard.stop("web") == 0
