"""PgBouncer before PostgreSQL: in session mode all works as without it; in its other modes, each role refuses to start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from taskyard import database_check
from taskyard.database import sync_engine
from taskyard.database_check import check_database
from taskyard.errors import ConfigurationError
from taskyard.settings import DatabaseSettings
from taskyard_api.connecting import Connector
from taskyard_migrations.runner import head
from tests.ground import PrivatePgBouncer, free_port, has_pgbouncer
from tests.servers import REQUIRED
from tests.stack import Stack, until

pytestmark = [pytest.mark.one_pair, pytest.mark.skipif(not REQUIRED and not has_pgbouncer(), reason="PgBouncer is not installed")]
Pool = Callable[..., str]


@pytest.fixture
def pooled(database_url: str) -> Iterator[Pool]:
    """Starts PgBouncers before the test's database; answers the URL."""
    with ExitStack() as ends:

        def start(mode: str, **settings: object) -> str:
            bouncer = PrivatePgBouncer(database_url, pool_mode=mode, **settings)
            ends.callback(bouncer.close)
            return bouncer.url

        yield start


def settings_for(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), statement_timeout=7)


def test_in_session_mode_every_role_works_and_no_parameter_has_to_be_ignored(pooled: Pool, database_url: str, broker_url: str, tmp_path: Path) -> None:
    url, port = pooled("session"), free_port()
    stack = Stack(database_url, broker_url, tmp_path, TASKYARD_API__PORT=str(port), TASKYARD_WORKER__PROCESSES="1")
    stack.env["DATABASE_URL"] = url
    try:
        at = subprocess.run([sys.executable, "-m", "taskyard", "db", "current"], env=stack.env, capture_output=True, text=True)
        assert (at.returncode, at.stdout) == (0, f"{head()} (newest)\n"), at.stderr
        for role in ("dispatcher", "worker", "serve"):
            stack.start(role)
        stack.ready()
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            until(lambda: _answers(client), 60, "the web process")
            made = [client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": "x"}}) for _ in range(20)]
            assert {answer.status_code for answer in made} == {201}
            tasks = [f"/api/v1/tasks/{answer.json()['id']}" for answer in made]
            until(lambda: all(client.get(task).json()["status"] == "succeeded" for task in tasks), 60, "success")
    finally:
        stack.close()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx2.TransportError:
        return False


def test_in_session_mode_each_session_has_its_settings(pooled: Pool) -> None:
    settings = settings_for(pooled("session"))
    engine = sync_engine(settings, role="test", pool_size=1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_setting('statement_timeout') || ' ' || current_setting('enable_seqscan')")).scalar() == "7s off"
    engine.dispose()

    async def by_asyncpg() -> tuple[str, bool]:
        connector = Connector(settings)
        connection = await connector.connect("test")
        try:
            return await connection.fetchval("SHOW statement_timeout"), await connection.fetchval("SELECT pg_backend_pid()") == connector.pid_of(connection)
        finally:
            await connection.close()

    assert asyncio.run(by_asyncpg()) == ("7s", True), "the backend is known by its own process id, not by the pooler's"


@pytest.mark.parametrize("turns", [0, 1], ids=["last first", "in turn"])
@pytest.mark.parametrize("idle", [0, 1, 2, 3])
def test_transaction_mode_is_found_out_however_the_pooler_picks_a_backend(pooled: Pool, turns: int, idle: int) -> None:
    url = pooled("transaction", server_round_robin=turns)
    with ExitStack() as stack:
        others = [stack.enter_context(psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))) for _ in range(idle)]
        for other in others:
            other.execute("SELECT 1")
        for other in others:
            other.commit()
        with pytest.raises(ConfigurationError, match="pool_mode=session"):
            check_database(settings_for(url))


def test_session_mode_is_taken_for_what_it_is(pooled: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    check_database(settings_for(pooled("session")))
    monkeypatch.setattr(database_check, "_PATIENCE", 0.5)
    check_database(settings_for(pooled("session", default_pool_size=1)))


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_each_role_refuses_another_mode_with_a_sentence(pooled: Pool, broker_url: str, tmp_path: Path, mode: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABASE_URL": pooled(mode), "CELERY_BROKER_URL": broker_url}
    for command in (["serve", "--port", "0"], ["dispatcher"], ["worker"], ["db", "upgrade"]):
        run = subprocess.run([sys.executable, "-m", "taskyard", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert run.returncode == 1, command
        assert "pool_mode=session" in run.stderr, run.stderr
        assert "Traceback" not in run.stderr


def test_a_parameter_that_the_pooler_refuses_is_named(pooled: Pool) -> None:
    with pytest.raises(ConfigurationError, match=r"unsupported startup parameter.*ignore_startup_parameters"):
        check_database(settings_for(f"{pooled('session')}?options=-csearch_path%3Dapp"))
