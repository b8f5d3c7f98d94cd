"""The log of each role says why it can't work, in the driver's own words and without passwords."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest
from sqlalchemy import make_url

from tests.conftest import SERVER_RABBITMQ
from tests.conftest import _answers as answers
from tests.servers import REQUIRED
from tests.stack import until
from tests.system.test_role_logs import free_port

pytestmark = pytest.mark.one_pair
PASSWORD = "hunter2hunter2"
ROLES = ("serve", "dispatcher", "worker")


class Role:
    """One role as a process."""

    def __init__(self, folder: Path, name: str, **env: str) -> None:
        self._path = folder / f"{name}.log"
        self.port = free_port()
        options = ["--port", str(self.port)] if name == "serve" else []
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TASKYARD_")}
        with self._path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskyard", name, *options],
                env={**clean, "TASKYARD_LOG__FORMAT": "json", **env},
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def log(self) -> str:
        return self._path.read_text(errors="replace")

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Role]]:
    made: list[Role] = []

    def begin(name: str, **env: str) -> Role:
        made.append(Role(tmp_path, name, **env))
        return made[-1]

    yield begin
    for role in made:
        role.close()


@pytest.mark.parametrize("name", ROLES)
def test_a_wrong_database_name_is_in_the_log_of_every_role(postgres_url: str, broker_url: str, start: Callable[..., Role], name: str) -> None:
    wrong = make_url(postgres_url).set(database="nobody_has_this", password=PASSWORD).render_as_string(hide_password=False)
    role = start(name, DATABASE_URL=wrong, CELERY_BROKER_URL=broker_url)

    def said() -> bool:
        if name == "serve":
            try:
                httpx2.get(f"http://127.0.0.1:{role.port}/api/v1/tasks", timeout=5)
            except httpx2.TransportError:
                return False
        return 'database \\"nobody_has_this\\" does not exist' in role.log()

    until(said, 60, "the driver's words")
    assert PASSWORD not in role.log()


def broker_error(database_url: str) -> str | None:
    """What the only dispatcher says of the broker."""
    with psycopg.connect(make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        row = connection.execute("SELECT broker_error FROM dispatchers WHERE beat_at > now() - interval '10 s'").fetchone()
    return row[0] if row else None


def test_an_idle_dispatcher_says_that_the_broker_is_away_and_where_it_looked(database_url: str, start: Callable[..., Role]) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    role = start("dispatcher", DATABASE_URL=database_url, CELERY_BROKER_URL=f"amqp://guest:{PASSWORD}@{nowhere}//")
    until(lambda: broker_error(database_url), 60, "its row")
    assert "refused" in (broker_error(database_url) or "")
    assert "dispatcher.broker_away" in role.log()
    assert nowhere in role.log()
    assert PASSWORD not in role.log() + (broker_error(database_url) or "")


@pytest.mark.skipif(not REQUIRED and not answers(5672), reason="no RabbitMQ answers here")
def test_a_wrong_broker_password_is_in_the_log_of_an_idle_dispatcher(database_url: str, start: Callable[..., Role]) -> None:
    role = start("dispatcher", DATABASE_URL=database_url, CELERY_BROKER_URL=make_url(SERVER_RABBITMQ).set(password=PASSWORD).render_as_string(False))
    until(lambda: "ACCESS_REFUSED" in role.log(), 60, "RabbitMQ's words")
    until(lambda: "ACCESS_REFUSED" in (broker_error(database_url) or ""), 60, "its row")
    assert PASSWORD not in role.log()


def test_a_dispatcher_that_stops_leaves_no_row(database_url: str, broker_url: str, start: Callable[..., Role]) -> None:
    role = start("dispatcher", DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url)

    def rows() -> int:
        with psycopg.connect(make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
            return int((connection.execute("SELECT count(*) FROM dispatchers").fetchone() or [0])[0])

    until(lambda: rows() == 1, 60, "its row")
    assert role.stop() == 0
    assert rows() == 0
