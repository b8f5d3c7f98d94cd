"""What `taskyard health` calls healthy, and what it does not."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from taskyard import dispatchers
from taskyard.cli import health
from taskyard.errors import TaskyardError, Unavailable
from tests.core.life import Life
from tests.stack import until

Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Set environment variables, in a folder without a .env."""
    monkeypatch.chdir(tmp_path)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def _worker(engine: Engine, name: str, silence: float = 0.0, host: str | None = None, idle: float = 0.0) -> None:
    row = {"id": uuid.uuid4(), "name": name, "silence": silence, "host": host, "idle": idle}
    with engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO workers (id, name, queues, slots, host, beat_at, progressed_at) VALUES (:id, :name, '{default}', '{"sync": 1}', :host,
                now() - :silence * interval '1 second', now() - :idle * interval '1 second')"""
            ),
            row,
        )


def test_a_worker_of_this_host_that_beats_its_heart_is_healthy(configure: Configure, database_url: str, engine: Engine) -> None:
    configure(DATABASE_URL=database_url)
    _worker(engine, f"taskyard-1@{socket.gethostname()}")
    health.worker()


def test_a_silent_worker_and_one_of_another_host_are_not_this_ones_health(configure: Configure, database_url: str, engine: Engine) -> None:
    configure(DATABASE_URL=database_url, TASKYARD_DISPATCH__WORKER_SILENCE="15")
    _worker(engine, f"taskyard-1@{socket.gethostname()}", silence=20)
    _worker(engine, "taskyard-2@elsewhere")
    with pytest.raises(TaskyardError, match=socket.gethostname()):
        health.worker()


@pytest.mark.parametrize("name", ["w1", "w1@ops"])
def test_a_worker_is_found_by_its_host_whatever_its_name(configure: Configure, database_url: str, engine: Engine, name: str) -> None:
    configure(DATABASE_URL=database_url)
    with pytest.raises(TaskyardError, match=f"No worker of {socket.gethostname()}"):
        health.worker()
    _worker(engine, name if "@" in name else f"{name}@{socket.gethostname()}", host=socket.gethostname())
    health.worker()
    health.worker(name)


def test_workers_of_one_host_are_told_apart_by_name(configure: Configure, database_url: str, engine: Engine) -> None:
    configure(DATABASE_URL=database_url)
    host = socket.gethostname()
    _worker(engine, f"mail-1@{host}", host=host)
    _worker(engine, f"mail-2@{host}", host=host, silence=60)
    health.worker()
    health.worker("mail-1")
    with pytest.raises(TaskyardError, match=r"No worker named mail-2 or mail-2@.* beat within 15 s\. Did you mean 'mail-1'"):
        health.worker("mail-2")


def test_a_worker_that_takes_nothing_although_tasks_wait_is_not_healthy(configure: Configure, database_url: str, engine: Engine) -> None:
    configure(DATABASE_URL=database_url)
    host = socket.gethostname()
    _worker(engine, f"w1@{host}", host=host, idle=500)
    _worker(engine, f"w2@{host}", host=host)
    health.worker()
    life = Life(engine)
    task = life.queued()
    life.execute("UPDATE tasks SET created_at = now() - interval '500 s' WHERE id = :id", id=task)
    with pytest.raises(TaskyardError, match=rf"w1@{host} for \d+ s"):
        health.worker()
    health.worker("w2")


def test_a_dispatcher_is_healthy_while_it_uses_the_database(configure: Configure, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(DATABASE_URL=database_url, TASKYARD_DISPATCH__TICK="0.1", TASKYARD_DATABASE__STATEMENT_TIMEOUT="1")
    monkeypatch.setattr(dispatchers, "BEAT_EVERY", 0.1)
    with pytest.raises(TaskyardError, match="No dispatcher"):
        health.dispatcher()
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, application_name="taskyard-dispatcher", autocommit=True) as connection:
        connection.execute("SELECT 1")
        health.dispatcher()
        # Connected, but it asks nothing any more: it hangs.
        until(lambda: _refused(health.dispatcher))


def test_a_dispatcher_that_can_not_reach_the_broker_is_not_healthy(configure: Configure, database_url: str, engine: Engine) -> None:
    configure(DATABASE_URL=database_url)
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    id_ = uuid.uuid4()

    def beat(host: str, error: str | None, which: uuid.UUID = id_) -> None:
        with engine.begin() as connection:
            dispatchers.beat(connection, which, host, error)

    with psycopg.connect(url, application_name="taskyard-dispatcher", autocommit=True) as connection:
        connection.execute("SELECT 1")
        beat("elsewhere", "refused", uuid.uuid4())
        health.dispatcher()
        beat(socket.gethostname(), "refused")
        with pytest.raises(TaskyardError, match="reaches the broker"):
            health.dispatcher()
        beat(socket.gethostname(), None)
        health.dispatcher()


def _refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except TaskyardError:
        return True
    return False


def test_without_a_database_there_is_no_health(configure: Configure) -> None:
    configure(DATABASE_URL="postgresql://postgres@127.0.0.1:1/none")
    for check in (health.worker, health.dispatcher):
        with pytest.raises(Unavailable):
            check()


@pytest.fixture
def service() -> Iterator[tuple[int, dict[str, int]]]:
    """A port that answers /health/ready with the status in the dictionary."""
    answer = {"status": 200}

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"] if self.path == "/health/ready" else 404)
            self.end_headers()
            self.wfile.write(b'{"parts": {"database": "away"}}')

        def log_message(self, format: str, *args: object) -> None:
            """Not on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_address[1], answer
    server.shutdown()
    server.server_close()


def test_a_service_is_healthy_when_it_says_that_it_is_ready(configure: Configure, service: tuple[int, dict[str, int]]) -> None:
    port, answer = service
    configure(TASKYARD_API__PORT=str(port), TASKYARD_API__HOST="0.0.0.0")
    health.web()
    answer["status"] = 503
    with pytest.raises(Unavailable, match=r"503.*database"):
        health.web()


def test_a_service_that_does_not_answer_is_not_healthy(configure: Configure) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        configure(TASKYARD_API__PORT=str(taken.getsockname()[1]))
        with pytest.raises(Unavailable, match="does not answer"):
            health.web()
