"""A stop ends the service at any moment, and a request that it does not wait for any more is told to come again."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard_api.app import create_app
from taskyard_api.command import server_of

pytestmark = [pytest.mark.anyio, pytest.mark.one_pair]
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


def _waiting(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(WAITING).scalar_one())


@pytest.mark.parametrize("path", ["/tasks", "/tasks/actions"])
async def test_what_still_waits_when_the_grace_of_a_stop_is_over_is_503_and_not_500(
    api_settings: Settings, registry: Registry, engine: Engine, database_url: str, path: str
) -> None:
    bodies = {"/tasks": {"type": "anything", "payload": 1}, "/tasks/actions": {"action": "cancel", "filter": {}}}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_of(create_app(api_settings, registry))
        server.config.timeout_graceful_shutdown = 0
        serving = asyncio.create_task(server.serve([listening]))
        async with AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1", timeout=60) as client:
            with psycopg.connect(database_url) as holder:
                holder.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
                asked = asyncio.create_task(client.post(path, json=bodies[path]))
                while not await asyncio.to_thread(_waiting, engine):
                    assert not asked.done()
                server.should_exit = True
                answer = await asked
        await asyncio.wait_for(serving, 60)
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["connection"]) == (503, "2", "close")
    assert answer.json()["title"] == "The service is stopping"
    with engine.connect() as connection:
        # It was committed when the lock was gone, or never: it is not lost half-way.
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar_one() in (0, 1)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stop_that_comes_while_a_plugin_is_imported_ends_the_service(database_url: str, tmp_path: Path, number: str) -> None:
    (tmp_path / "stopping.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number})\n")
    about = tmp_path / "stopping-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stopping\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[taskyard.plugins]\nstopping = stopping\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DATABASE_URL": database_url}
    command = [sys.executable, "-m", "taskyard", "serve", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "plugin.failed" not in done.stdout + done.stderr
