"""Many clients that submit and wait, and nothing goes wrong: every task is done by its first message, and none waits for a sweep or a tick."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from taskyard.client import Client
from tests.ground import free_port
from tests.stack import Stack, until

CLIENTS, EACH = 8, 60
#: Seconds that a task may take before a client gives up: far less than until the tick, which would find it.
PATIENCE = 100.0


@pytest.fixture
def served(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[tuple[Stack, list[str]]]:
    """All roles with a tick of an hour, so that a hint that is lost stays lost; two web processes and their addresses."""
    stack = Stack(database_url, broker_url, tmp_path, TASKYARD_DISPATCH__TICK="3600", TASKYARD_WORKER__PROCESSES="2")
    ports = [free_port(), free_port()]
    for port in ports:
        stack.start(f"serve-{port}", "taskyard", "serve", "--port", str(port))
    stack.start("dispatcher")
    until(lambda: "dispatcher.started" in stack.log("dispatcher"), 60)
    stack.start("worker")
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    stack.ready()
    until(lambda: all(_is_up(url) for url in urls), 60, "the web processes")
    yield stack, urls
    stack.close()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/live", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("type_", "payload"), [("t.echo", {"word": "x"}), ("t.asleep", {"seconds": 0.005})], ids=["sync", "async"])
def test_without_faults_no_task_of_clients_in_a_closed_loop_is_swept(served: tuple[Stack, list[str]], type_: str, payload: dict[str, object]) -> None:
    stack, urls = served

    def loop(number: int) -> list[object]:
        with Client(urls[number % len(urls)]) as client:
            return [client.submit(type_, payload).result(timeout=PATIENCE) for _ in range(EACH)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = [result for done in pool.map(loop, range(CLIENTS)) for result in done]
    assert len(results) == CLIENTS * EACH
    # Both write what they have counted when they stop.
    for role in ("worker", "dispatcher"):
        assert stack.stop(role) == 0
    with stack.engine.connect() as connection:
        statuses = connection.execute(text("SELECT status, count(*), max(fence) FROM tasks GROUP BY status")).all()
        swept = connection.execute(text("SELECT sum(value) FROM counters WHERE name = 'taskyard_tasks_swept_total'")).scalar()
    assert [tuple(row) for row in statuses] == [("succeeded", CLIENTS * EACH, 1)], "each ran once"
    assert (swept or 0, "tasks.swept" in stack.log("dispatcher")) == (0, False)
