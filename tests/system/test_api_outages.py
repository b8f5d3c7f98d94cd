"""The REST service while its database is away: 503 in time, never a 2xx that is not true, and well again by itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from pydantic import SecretStr

from taskyard.plugins import load_plugins
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api import database
from taskyard_api.app import create_app
from tests import ground as grounds
from tests.ground import TEMPLATE, EmbeddedServer
from tests.proxy import Proxy
from tests.stack import PATIENCE, TESTBED, cloned, until

pytestmark = pytest.mark.anyio
#: Far above the two seconds that are promised, for a busy machine, and far below the statement timeout of 30 s.
BOUND = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def away(private_postgres: EmbeddedServer) -> Iterator[tuple[Proxy, str]]:
    """A proxy before a private PostgreSQL, and the URL of a database behind it, by another way."""
    proxy = Proxy(private_postgres.url, grounds.free_port())
    with cloned(private_postgres.url, TEMPLATE) as url:
        yield proxy, url
        private_postgres.thaw()
        private_postgres.start()
        proxy.close()


@asynccontextmanager
async def _service(proxy: Proxy, url: str, **settings: Any) -> AsyncIterator[AsyncClient]:
    if str(TESTBED) not in sys.path:
        sys.path.append(str(TESTBED))
    app = create_app(Settings(database=DatabaseSettings(url=SecretStr(proxy.url_of(url)), **settings)), load_plugins(only=["testbed"]))
    async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app), base_url="http://test.localhost", timeout=60) as client:
        yield client


async def _submit(client: AsyncClient, word: str = "", **fields: Any) -> Response:
    return await client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": word}, **fields})


async def _every_call(client: AsyncClient, task: str) -> dict[str, Response]:
    calls = {
        "submit": _submit(client),
        "list": client.get("/api/v1/tasks"),
        "one": client.get(f"/api/v1/tasks/{task}"),
        "patch": client.patch(f"/api/v1/tasks/{task}", json={"priority": 7}),
        "hold": client.post(f"/api/v1/tasks/{task}/hold"),
        "events": client.get(f"/api/v1/tasks/{task}/events"),
        "queues": client.get("/api/v1/queues"),
        "pause": client.post("/api/v1/queues/default/pause"),
        "deliveries": client.get("/api/v1/deliveries"),
        "ready": client.get("/health/ready"),
    }
    async with asyncio.timeout(BOUND):
        return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


async def _all_refused(client: AsyncClient, task: str) -> None:
    """Every call answers 503 and says when to try again; readiness names the part."""
    answers = await _every_call(client, task)
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 503)
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers.values())
    parts = answers.pop("ready").json()["parts"]
    assert parts["database"] != "ok"
    assert {answer.json()["type"] for answer in answers.values()} == {"urn:taskyard:problem:unavailable"}
    assert (await client.get("/health/live")).status_code == 200


async def _works_again(client: AsyncClient) -> None:
    async with asyncio.timeout(BOUND):
        # Not without a sleep: in one process with the client, the service would not come to its own work.
        while (await client.get("/health/ready")).status_code != 200 or (await _submit(client)).status_code != 201:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextmanager
def _row_locked(url: str, task: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE", [task])
        yield


async def test_the_answer_comes_within_two_seconds() -> None:
    """What a call waits at most: once for a connection, or for silence to be noticed and the database to be asked."""
    assert DatabaseSettings().connect_timeout < 2
    assert database.PATIENCE + database.TIME_TO_ANSWER < 2


@pytest.mark.parametrize("fault", ["refused", "hangs", "answers are lost", "stopped", "frozen"])
async def test_without_its_database_every_call_is_refused_in_time_and_works_again_after(
    away: tuple[Proxy, str], private_postgres: EmbeddedServer, fault: str
) -> None:
    proxy, url = away
    async with _service(proxy, url) as client:
        task = (await _submit(client)).json()["id"]
        # So that there are connections in the pool.
        await _every_call(client, task)
        faults = {
            "refused": (proxy.refuse, proxy.heal),
            "hangs": (proxy.hang, proxy.heal),
            "answers are lost": (lambda: proxy.hang("to_client"), proxy.heal),
            "stopped": (private_postgres.kill, private_postgres.start),
            "frozen": (private_postgres.freeze, private_postgres.thaw),
        }
        begin, end = faults[fault]
        begin()
        await _all_refused(client, task)
        await _all_refused(client, task)
        end()
        await _works_again(client)


async def test_connections_that_died_silently_are_given_up_though_new_ones_work(away: tuple[Proxy, str]) -> None:
    proxy, url = away
    async with _service(proxy, url) as client:
        task = (await _submit(client)).json()["id"]
        await _every_call(client, task)
        proxy.hang(new=False)
        async with asyncio.timeout(BOUND):
            assert (await client.get(f"/api/v1/tasks/{task}")).status_code == 503
        await _works_again(client)


async def test_a_slow_statement_is_waited_for(away: tuple[Proxy, str]) -> None:
    proxy, url = away
    async with _service(proxy, url) as client:
        task = (await _submit(client)).json()["id"]
        with _row_locked(url, task):
            patched = asyncio.create_task(client.patch(f"/api/v1/tasks/{task}", json={"priority": 7}))
            await asyncio.sleep(2 * (database.PATIENCE + database.TIME_TO_ANSWER))
            assert not patched.done()
        assert (await patched).status_code == 200


async def test_a_pool_that_is_used_up_refuses_and_works_again(away: tuple[Proxy, str]) -> None:
    proxy, url = away
    async with _service(proxy, url, pool_size=1, connect_timeout=0.5) as client:
        task = (await _submit(client)).json()["id"]
        with _row_locked(url, task):
            patched = asyncio.create_task(client.patch(f"/api/v1/tasks/{task}", json={"priority": 7}))
            async with asyncio.timeout(PATIENCE):
                while (refused := await client.get("/api/v1/tasks")).status_code == 200:
                    await asyncio.sleep(0.01)
                    if patched.done():
                        # On a busy machine it may be refused itself: its half second was over before there was a connection.
                        patched = asyncio.create_task(client.patch(f"/api/v1/tasks/{task}", json={"priority": 7}))
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert (await patched).status_code == 200
        await _works_again(client)


async def test_terminated_connections_cost_at_most_the_calls_that_used_them(away: tuple[Proxy, str]) -> None:
    proxy, url = away
    async with _service(proxy, url) as client:
        task = (await _submit(client)).json()["id"]
        await _every_call(client, task)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        await _works_again(client)
        statuses = {answer.status_code for answer in (await _every_call(client, task)).values()}
        assert max(statuses) < 500


@pytest.mark.parametrize("forward", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("commit", [b"", b"COMMIT"], ids=["one statement", "a transaction"])
async def test_a_commit_without_an_answer_is_no_success(away: tuple[Proxy, str], commit: bytes, forward: bool) -> None:
    """A statement that commits itself is cut at its parameters; two tasks with a unique key take a transaction."""
    proxy, url = away
    lost = [{"type": "t.echo", "payload": {"word": "lost-on-its-way"}, "unique_key": f"lost-{n}"} for n in range(2)]
    async with _service(proxy, url) as client:
        (await _submit(client)).raise_for_status()
        trap = proxy.cut_at(b"lost-on-its-way", commit, forward=forward)
        answer = await (client.post("/api/v1/tasks/batch", json={"tasks": lost}) if commit else client.post("/api/v1/tasks", json=lost[0]))
        assert trap.sprung.is_set()
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        with psycopg.connect(url, autocommit=True) as connection:
            count = "SELECT count(*) FROM tasks WHERE payload ->> 'word' = 'lost-on-its-way'"
            until(lambda: connection.execute(count).fetchone() == ((2 if commit else 1) if forward else 0,))
        await _works_again(client)
