"""What docs/operators.md says of a downgrade: running roles need not be stopped, and wait for a schema that they can work on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from taskyard_migrations import runner
from tests.stack import Stack, until
from tests.system.test_role_logs import free_port

pytestmark = pytest.mark.one_pair


@pytest.fixture
def stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(database_url, broker_url, tmp_path, TASKYARD_WORKER__PROCESSES="1")
    yield made
    made.close()


def db(stack: Stack, *command: str) -> str:
    line = [sys.executable, "-m", "taskyard", "db", *command]
    done = subprocess.run(line, env={**os.environ, **stack.env}, cwd=stack.folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_roles_wait_for_the_schema_that_they_need_and_go_on_without_a_restart(stack: Stack) -> None:
    port = free_port()
    stack.start("dispatcher")
    stack.start("worker")
    stack.start("serve", "taskyard", "serve", "--port", str(port))
    stack.ready()

    def status() -> int:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=10).status_code
        except httpx2.TransportError:
            return 0

    until(lambda: status() == 200, 60, "the service")
    running = stack.submit("t.asleep", {"seconds": 3})
    stack.wait(running, "running")
    said = db(stack, "downgrade", "-1")
    assert "workers, dispatchers, web processes" in said
    assert "older version" in said
    until(lambda: status() == 503, 60, "the service to say that it is not ready")
    waiting = stack.submit("t.echo")
    db(stack, "upgrade")
    until(lambda: status() == 200, 60, "the service to be ready again")
    assert [stack.wait(task, seconds=60)["status"] for task in (running, waiting)] == ["succeeded", "succeeded"]
    assert all(process.poll() is None for process in stack.processes.values())


def test_without_roles_a_downgrade_has_nothing_to_say_of_them(stack: Stack) -> None:
    assert "older version" not in db(stack, "downgrade", "-1")
    assert runner.current(stack.env["DATABASE_URL"]) == f"{int(runner.head()) - 1:04d}"
