"""The exact commands of docker-compose.yml, run by hand: on a PostgreSQL and a RabbitMQ at their default ports.

They run in a folder that has what the image's work folder has, with the environment that the file gives them; only the
addresses are this machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.broker import forget
from tests.stack import until

from . import compose

ROOT = Path(__file__).parents[2]
BROKER = "amqp://guest:guest@127.0.0.1:5672//"
ROLES = ("web", "worker", "dispatcher", "flower")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """The services of the file, started one by one."""

    services: dict[str, dict[str, Any]]
    folder: Path
    changed: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        own = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.folder)}
        given: dict[str, str] = self.services[name]["environment"]
        return own | given | self.changed

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                self.services[name]["command"], cwd=self.folder / "app", env=self.environment(name), stdout=output, stderr=output, start_new_session=True
            )

    def execute(self, name: str, *command: str) -> int:
        """``docker compose exec NAME ...``."""
        return subprocess.run(command, cwd=self.folder / "app", env=self.environment(name), capture_output=True).returncode

    def is_healthy(self, name: str) -> bool:
        return self.execute(name, *self.services[name]["healthcheck"]["test"][1:]) == 0

    def stop(self, name: str) -> int:
        """``docker compose stop NAME``: SIGTERM, and as long as the file allows."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(compose.seconds(self.services[name]["stop_grace_period"]))

    def kill(self) -> None:
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def database() -> Iterator[str]:
    """The name of an empty database on the server."""
    if os.environ.get("TASKYARD_TEST_SERVERS") != "required" and not (_answers(5432) and _answers(5672)):
        pytest.skip("needs PostgreSQL and RabbitMQ on their default ports")
    name = f"ty_compose_{uuid.uuid4().hex[:10]}"
    with psycopg.connect("postgresql://postgres@127.0.0.1/postgres", autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield name
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def stack(database: str, tmp_path: Path) -> Iterator[Stack]:
    """The file's services on this machine's servers, in a folder like the image's."""
    variables = compose.example(
        POSTGRES_HOST="127.0.0.1",
        POSTGRES_PORT="5432",
        POSTGRES_USER="postgres",
        POSTGRES_DB=database,
        CELERY_BROKER_URL=BROKER,
    )
    prefix = f"c{uuid.uuid4().hex[:8]}"
    changed = {
        "TASKYARD_API__HOST": "127.0.0.1",
        "TASKYARD_API__PORT": str(_free_port()),
        "FLOWER_PORT": str(_free_port()),
        "TASKYARD_BROKER__PREFIX": prefix,
    }
    (tmp_path / "app").mkdir()
    shutil.copy(ROOT / "alembic.ini", tmp_path / "app")
    shutil.copytree(ROOT / "migrations", tmp_path / "app" / "migrations")
    made = Stack(compose.load(variables)["services"], tmp_path, changed)
    yield made
    made.kill()
    forget(BROKER, prefix)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _submit(api: httpx2.Client) -> str:
    answer = api.post("/tasks", json={"type": "demo.echo", "payload": {"text": "from compose"}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _result(api: httpx2.Client, task: str) -> Any:
    now = api.get(f"/tasks/{task}").json()
    return now["result"] if now["status"] == "succeeded" else None


def _shown(page: str, api: httpx2.Client) -> Any:
    """What Flower knows of a new task. It asks workers for their events some seconds after its start, and they send none before."""
    task = _submit(api)
    until(lambda: _result(api, task))
    return httpx2.get(page, auth=("boss", "secret")).raise_for_status().json().get(task)


def test_every_service_runs_by_its_own_command_and_writes_nothing_into_its_work_folder(stack: Stack) -> None:
    brought = _files(stack.folder / "app")
    for name in ("worker", "dispatcher", "web"):
        assert not stack.is_healthy(name)
    for name in ROLES:
        stack.start(name)
        until(partial(stack.is_healthy, name), 60, f"the health of {name}")

    assert stack.execute("web", "alembic", "upgrade", "head") == 0
    assert stack.execute("web", "alembic", "check") == 0

    with httpx2.Client(base_url=f"http://127.0.0.1:{stack.changed['TASKYARD_API__PORT']}/api/v1", timeout=10) as api:
        task = _submit(api)
        done = until(lambda: _result(api, task))
        assert done == {"text": "from compose"}

        page = f"http://127.0.0.1:{stack.changed['FLOWER_PORT']}/api/tasks"
        assert httpx2.get(page).status_code == 401
        assert httpx2.get(page, auth=("boss", "wrong")).status_code == 401
        shown = until(lambda: _shown(page, api), what="a task in Flower")
        assert shown["name"] == "demo.echo"

    for name in ROLES:
        assert stack.stop(name) in (0, -signal.SIGTERM), (stack.folder / f"{name}.log").read_text()[-2000:]
    assert not stack.is_healthy("worker")
    assert _files(stack.folder / "app") == brought, "the containers' root file systems are read-only"
