"""A request that a stop of the service does not wait for any more is told to come again."""

from __future__ import annotations

import asyncio
import socket

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
