"""The service as a whole: health, a database that goes away, group commit, announcements, a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import psycopg
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from taskyard import queries, submission
from taskyard.errors import UniqueConflict
from taskyard.plugins import Registry
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from taskyard_api.group_commit import GroupCommit
from taskyard_api.service import Service

from .conftest import client_of, submit

pytestmark = pytest.mark.anyio
NOBODY = {
    "dispatcher": "none used the database lately: tasks are accepted, and wait",
    "workers": "none beat within 15 s: tasks are accepted, and wait",
    "broker": "unknown: no dispatcher has looked lately",
}


@asynccontextmanager
async def served(url: str, registry: Registry) -> AsyncIterator[AsyncClient]:
    settings = Settings(database=DatabaseSettings(url=SecretStr(url), connect_timeout=1))
    app = create_app(settings, registry)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


async def test_a_healthy_service_is_alive_and_ready_with_its_parts_named(client: AsyncClient) -> None:
    assert (await client.get("http://test.localhost/health/live")).json() == {"status": "alive"}
    ready = await client.get("http://test.localhost/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "parts": {"database": "ok", "schema": "ok", "writes": "ok", **NOBODY}})


async def test_an_older_schema_is_not_ready_and_a_newer_one_is(client: AsyncClient, engine: Engine) -> None:
    for version, status in (("0000", 503), ("9999", 200)):
        with engine.begin() as connection:
            connection.execute(text("UPDATE taskyard_alembic_version SET version_num = :version"), {"version": version})
        ready = await client.get("http://test.localhost/health/ready")
        assert ready.status_code == status
        assert (ready.json()["parts"]["schema"] == "ok") is (status == 200)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where nobody ever answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


async def test_without_a_database_the_service_comes_up_and_answers_503(registry: Registry, silent_port: int) -> None:
    for port in (1, silent_port):
        async with served(f"postgresql://postgres@127.0.0.1:{port}/none", registry) as client:
            assert (await client.get("http://test.localhost/health/live")).status_code == 200
            assert (await client.get("/task-types")).status_code == 200
            answers = await asyncio.gather(
                client.post("/tasks", json={"type": "anything", "payload": 1}), client.get("/tasks"), client.post("/queues/default/pause")
            )
            for answer in answers:
                assert answer.status_code == 503, answer.text
                assert answer.json()["type"].endswith("unavailable")
                assert answer.headers["retry-after"]
            ready = await client.get("http://test.localhost/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")


async def test_the_service_recovers_when_its_database_appears(registry: Registry, postgres_url: str, template: str) -> None:
    url = make_url(postgres_url)
    admin = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = f"ty_late_{os.getpid()}"
    async with served(url.set(database=name).render_as_string(hide_password=False), registry) as client:
        assert (await client.post("/tasks", json={"type": "anything", "payload": 1})).status_code == 503
        with admin.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
        assert (await client.post("/tasks", json={"type": "anything", "payload": 1})).status_code == 201
        assert (await client.get("http://test.localhost/health/ready")).status_code == 200
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


async def test_no_request_pays_for_connections_that_a_restart_closed(client: AsyncClient, engine: Engine) -> None:
    await asyncio.gather(*(client.get("/tasks") for _ in range(5)))
    await submit(client)

    def end_all() -> list[bool]:
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'taskyard-api' AND datname = current_database()"
        with engine.begin() as connection:
            return list(connection.execute(text(query)).scalars())

    # On a thread, so that the service's event loop sees its connections close.
    assert all(await asyncio.to_thread(end_all))
    answers = await asyncio.gather(*(client.get("/tasks") for _ in range(5)), client.post("/tasks", json={"type": "anything", "payload": 1}))
    assert [answer.status_code for answer in answers] == [200] * 5 + [201]


async def test_data_that_the_database_refuses_and_no_check_foresaw_is_a_500_with_an_id_that_the_log_has_too(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tasks ADD CONSTRAINT nobody_knows_of_it CHECK (priority <> 7)"))
    try:
        with capture_logs() as lines:
            answer = await client.patch(f"/tasks/{task['id']}", json={"priority": 7})
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE tasks DROP CONSTRAINT nobody_knows_of_it"))
    body = answer.json()
    assert (answer.status_code, body["type"].rpartition(":")[2]) == (500, "internal")
    assert body["id"] in [line.get("id") for line in lines]
    assert "nobody_knows_of_it" not in answer.text


async def test_a_statement_that_the_schema_does_not_know_is_503_and_an_error_in_the_log_under_the_requests_id(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tasks RENAME COLUMN progress TO advance"))
    try:
        with capture_logs(processors=[merge_contextvars]) as lines:
            answer = await client.get(f"/tasks/{task['id']}")
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE tasks RENAME COLUMN advance TO progress"))
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["detail"]) == (503, "2", "The database can't do this now.")
    [line] = [line for line in lines if line["event"] == "database.refused"]
    assert (line["log_level"], line["request_id"], line["sqlstate"]) == ("error", answer.headers["x-request-id"], "42703")
    assert "progress" in line["error"]
    assert (await client.get(f"/tasks/{task['id']}")).status_code == 200


async def test_concurrent_submissions_share_commits(app: FastAPI, client: AsyncClient) -> None:
    commits: list[Any] = []
    event.listen(app.state.service.engine.sync_engine, "commit", commits.append)
    answers = await asyncio.gather(*(client.post("/tasks", json={"type": "anything", "payload": n}) for n in range(100)))
    assert [answer.json()["payload"] for answer in answers] == list(range(100))
    assert len({answer.json()["id"] for answer in answers}) == 100
    assert len(commits) < 50


async def test_of_concurrent_submissions_with_one_unique_key_one_wins(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/tasks", json={"type": "anything", "payload": 1, "unique_key": "k"}) for _ in range(20)))
    [won] = [answer for answer in answers if answer.status_code == 201]
    lost = [answer for answer in answers if answer.status_code == 409]
    assert {answer.json()["task_id"] for answer in lost} == {won.json()["id"]}
    assert len(lost) == 19


@pytest.fixture
async def commits(app: FastAPI) -> GroupCommit:
    service: Service = app.state.service
    return service.commits


async def test_a_row_that_postgres_refuses_hurts_only_its_own_request(commits: GroupCommit, registry: Registry) -> None:
    new = [submission.prepare(registry, {"type": "anything", "payload": n, "unique_key": f"k{n}"}) for n in range(20)]
    new[7] = replace(new[7], priority=99)
    new[9] = replace(new[9], unique_key="k1")
    answers = await asyncio.gather(*(commits.submit(task) for task in new), return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, BaseException)] == [7, 9]
    assert isinstance(answers[9], UniqueConflict)


async def test_a_request_that_goes_away_takes_no_other_with_it(commits: GroupCommit, registry: Registry) -> None:
    new = [submission.prepare(registry, {"type": "anything", "payload": n}) for n in range(20)]
    waiting = [asyncio.create_task(commits.submit(task)) for task in new]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False] * 10


async def test_closing_commits_what_was_handed_in(commits: GroupCommit, registry: Registry, engine: Engine) -> None:
    waiting = [asyncio.create_task(commits.submit(submission.prepare(registry, {"type": "anything", "payload": n}))) for n in range(5)]
    await asyncio.sleep(0)
    await commits.close()
    assert len(await asyncio.gather(*waiting)) == 5


async def test_ready_tasks_are_announced_and_many_in_few_notifications(client: AsyncClient, database_url: str) -> None:
    with psycopg.connect(make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True) as listener:
        listener.execute("LISTEN taskyard_ready")

        async def heard(*last: str) -> list[str]:
            """What was notified, in order, until all of ``last`` were. One wait may bring several."""
            found: list[str] = []
            async with asyncio.timeout(20):
                while not set(last) <= set(found):
                    notes = await asyncio.to_thread(lambda: list(listener.notifies(timeout=5, stop_after=1)))
                    found += [note.payload for note in notes]
            return found

        task = await submit(client, "pages.fetch", {"url": "http://x"})
        assert await heard("io/async") == ["io/async"]
        await client.post(f"/tasks/{task['id']}/hold")
        await client.post(f"/tasks/{task['id']}/release")
        assert await heard("io/async") == ["io/async"]
        await client.post("/queues/io/resume")
        assert sorted(await heard("io/async", "io/sync")) == ["io/async", "io/sync"]
        planned = await submit(client, delay=60)
        announced = f"{planned['queue']}/sync"
        assert await heard(announced) == [announced], "a dispatcher must know how long it may sleep"
        await asyncio.gather(*(submit(client, queue="many") for _ in range(100)))
        await submit(client, queue="last")
        notes = await heard("last/sync")
        assert set(notes) == {"many/sync", "last/sync"}
        assert len(notes) < 50


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_process_serves_refuses_what_is_too_large_and_stops_cleanly(database_url: str, tmp_path: Any) -> None:
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": database_url, "TASKYARD_LOG__FORMAT": "json"}
    command = [sys.executable, "-m", "taskyard", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            while True:
                try:
                    assert client.get("/health/ready").status_code == 200
                    break
                except httpx2.TransportError:
                    assert process.poll() is None, process.communicate()
            large = client.post("/api/tasks/", content=json.dumps({"type": "x", "payload": "x" * 10_000_000}))
            assert large.status_code == 413
            assert large.json()["type"].endswith("too-large")
            # This client reads only when all is sent: a connection closed before would be reset under it.
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/tasks/", data=b"x" * 10_000_000)
            with refused.value as answer:
                assert answer.code in (413, 415)
            unknown = client.post("/api/tasks/", json={"type": "no.such.type", "payload": 1})
            assert unknown.status_code == 422
            assert "server" not in unknown.headers
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


async def test_a_question_that_takes_too_long_is_stopped_and_said_to_be(app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "list_tasks", _slow_list)
    answer = await client.get("/tasks")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:taskyard:problem:unavailable")
    assert "too long" in answer.json()["detail"]
    assert "Retry-After" in answer.headers


def _slow_list(connection: Connection, *_: object) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 1"))
    connection.execute(text("SELECT pg_sleep(9)"))
