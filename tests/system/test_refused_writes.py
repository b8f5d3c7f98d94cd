"""A disk that is really full, and a password that was really changed: clients wait, nothing is lost, and nobody restarts anything."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import psycopg
import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from pydantic import SecretStr
from sqlalchemy import make_url

from taskyard.plugins import load_plugins
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from tests.disk import Disk, database_on
from tests.ground import TEMPLATE, EmbeddedServer
from tests.passwords import Login
from tests.stack import TESTBED, Stack, cloned, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    if not made.is_real:
        made.close()
        pytest.skip("we may not mount a disk here")
    yield made
    made.close()


@pytest.fixture
def on_disk(disk: Disk, private_postgres: EmbeddedServer) -> Iterator[str]:
    private_postgres.start()
    with database_on(disk, private_postgres.url, TEMPLATE) as url:
        yield url


@asynccontextmanager
async def _service(url: str) -> AsyncIterator[AsyncClient]:
    if str(TESTBED) not in sys.path:
        sys.path.append(str(TESTBED))
    app = create_app(Settings(database=DatabaseSettings(url=SecretStr(url))), load_plugins(only=["testbed"]))
    async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app), base_url="http://localhost", timeout=60) as client:
        yield client


async def _submit(client: AsyncClient, size: int = 1) -> Response:
    return await client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": "x" * size}})


async def _until_refused(client: AsyncClient) -> Response:
    """What is left in pages that are there already takes some tasks yet."""
    async with asyncio.timeout(60):
        while (answer := await _submit(client, 5000)).status_code == 201:
            pass
    return answer


async def test_a_full_disk_is_503_and_not_ready_and_both_are_well_when_there_is_room(disk: Disk, on_disk: str) -> None:
    async with _service(on_disk) as client:
        assert (await _submit(client)).status_code == 201
        disk.fill()
        try:
            refused = await _until_refused(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert "53100" not in refused.text
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["parts"]["writes"]) == (503, "the database's disk is full")
            assert (await client.get("/api/v1/tasks")).status_code == 200, "what is there can be read"
        finally:
            disk.free()
        assert (await client.get("/health/ready")).status_code == 200
        assert (await _submit(client, 5000)).status_code == 201


async def test_a_changed_password_is_503_until_it_is_the_old_one_again(private_postgres: EmbeddedServer) -> None:
    private_postgres.start()
    with cloned(private_postgres.url, TEMPLATE) as url, Login(url) as login:
        async with _service(login.url) as client:
            assert (await _submit(client)).status_code == 201
            login.rotate()
            answers = await asyncio.gather(_submit(client), client.get("/api/v1/tasks"), client.get("/health/ready"))
            assert {answer.status_code for answer in answers} == {503}
            assert all(answer.headers["retry-after"] == "2" and login.name not in answer.text for answer in answers)
            login.restore()
            assert (await _submit(client)).status_code == 201
            assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["disk full", "password rotated"])
def test_what_ends_while_the_database_refuses_writes_is_recorded_when_it_takes_them(
    fault: str, private_postgres: EmbeddedServer, broker_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    private_postgres.start()
    url: str = request.getfixturevalue("on_disk")
    with Login(url) as login:
        disk: Disk = request.getfixturevalue("disk")
        begin, end = {"disk full": (disk.fill, disk.free), "password rotated": (login.rotate, login.restore)}[fault]
        # What the test itself asks is asked by the server's owner.
        stack = Stack(url, broker_url, tmp_path, TASKYARD_WORKER__PROCESSES="2")
        stack.env["DATABASE_URL"] = login.url
        try:
            stack.start("dispatcher")
            stack.start("worker")
            stack.ready()
            slow = [stack.submit("t.sleep", {"seconds": 3}) for _ in range(2)]
            queued = [stack.submit("t.echo", {"word": str(number)}) for number in range(20)]
            for task in slow:
                stack.wait(task, "running")
            begin()
            try:
                _use_up(url, fault)
                until(lambda: "ledger.not_written" in stack.log("worker"), 60, "the worker to meet the fault")
            finally:
                end()
            for task in (*slow, *queued):
                row = stack.wait(task, seconds=90)
                assert row["status"] == "succeeded", (row["error"], stack.events(task))
            assert stack.wait(stack.submit("t.echo", {"word": "after"}), seconds=60)["status"] == "succeeded"
        finally:
            stack.close()


def _use_up(url: str, fault: str) -> None:
    """Write until the free room in pages that are there already is used up, too."""
    if fault != "disk full":
        return
    with psycopg.connect(make_url(url).render_as_string(hide_password=False), autocommit=True) as connection, pytest.raises(psycopg.errors.DiskFull):
        _write_without_end(connection)


def _write_without_end(connection: psycopg.Connection) -> None:
    """A row at a time, so that no role waits for one while it holds another."""
    ids = [row[0] for row in connection.execute("SELECT id FROM tasks").fetchall()]
    for id_ in cycle(ids):
        connection.execute("UPDATE tasks SET metadata = jsonb_build_object('n', random()) WHERE id = %s", [id_])
