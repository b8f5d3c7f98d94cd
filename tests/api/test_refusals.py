"""What the database refuses for reasons that are not the client's: 503 that says when to try again, and a service that says it is not ready."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import pytest
from httpx2 import AsyncClient, Response
from pydantic import SecretStr
from sqlalchemy import make_url

from taskyard.settings import DatabaseSettings, Settings
from taskyard_api import write_record
from tests.databases import cloned

pytestmark = [pytest.mark.anyio, pytest.mark.one_pair]
READY = "http://test.localhost/health/ready"


@pytest.fixture
def own_url(postgres_url: str, template: str) -> Iterator[str]:
    """A database of this test's own, and a role of its own that owns nothing: the URL of the one by the other."""
    role = f"ty_role_{uuid.uuid4().hex[:10]}"
    with cloned(postgres_url, template) as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
            owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
            owner.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        yield make_url(url).set(username=role, password="first").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(f"DROP OWNED BY {role} CASCADE")
            owner.execute(f"DROP ROLE {role}")


@pytest.fixture
def api_settings(own_url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=SecretStr(own_url)))


def _cut(owner: psycopg.Connection) -> None:
    """What a database or a role sets counts for new sessions."""
    owner.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


@contextmanager
def _read_only(owner: psycopg.Connection, role: str) -> Iterator[str]:
    owner.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    _cut(owner)
    yield "the database is read-only"
    owner.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")


@contextmanager
def _no_right(owner: psycopg.Connection, role: str) -> Iterator[str]:
    owner.execute(f"REVOKE INSERT ON tasks, events FROM {role}")
    yield "the database's role lacks INSERT on tasks, INSERT on events"
    owner.execute(f"GRANT INSERT ON tasks, events TO {role}")


@contextmanager
def _full(owner: psycopg.Connection, role: str) -> Iterator[str]:
    """As an extension of a file fails; tests/system fills a real one."""
    owner.execute("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not extend' USING ERRCODE = '53100'; END $$")
    owner.execute("CREATE TRIGGER full_disk BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION full_disk()")
    yield "the database's disk is full"
    owner.execute("DROP FUNCTION full_disk CASCADE")


@contextmanager
def _no_table(owner: psycopg.Connection, role: str) -> Iterator[str]:
    owner.execute("ALTER TABLE subscriptions RENAME TO subscribers")
    yield "the database's role lacks INSERT on subscriptions"
    owner.execute("ALTER TABLE subscribers RENAME TO subscriptions")


@contextmanager
def _no_column(owner: psycopg.Connection, role: str) -> Iterator[str]:
    owner.execute("ALTER TABLE tasks RENAME COLUMN tags TO labels")
    yield "a trial write failed (SQLSTATE 42703)"
    owner.execute("ALTER TABLE tasks RENAME COLUMN labels TO tags")


@contextmanager
def _no_login(owner: psycopg.Connection, role: str) -> Iterator[str]:
    owner.execute(f"ALTER ROLE {role} NOLOGIN")
    _cut(owner)
    yield "unknown: the database can't be asked"
    owner.execute(f"ALTER ROLE {role} LOGIN")


async def _submit(client: AsyncClient) -> Response:
    return await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": []})


Fault = Callable[[psycopg.Connection, str], AbstractContextManager[str]]


@pytest.mark.parametrize("fault", [_read_only, _no_right, _full, _no_column, _no_login])
async def test_submissions_that_the_database_refuses_are_503_and_the_service_is_not_ready(client: AsyncClient, own_url: str, fault: Fault) -> None:
    role = str(make_url(own_url).username)
    assert (await _submit(client)).status_code == 201
    assert (await client.get(READY)).json()["parts"]["writes"] == "ok"
    with psycopg.connect(make_url(own_url).set(username="postgres", password=None).render_as_string(), autocommit=True) as owner:
        with fault(owner, role) as reason:
            for _ in range(2):
                answers = await asyncio.gather(*(_submit(client) for _ in range(3)))
                assert {answer.status_code for answer in answers} == {503}
                assert {answer.headers["retry-after"] for answer in answers} == {"2"}
                assert all(role not in answer.text and "127.0.0.1" not in answer.text for answer in answers)
            ready = await client.get(READY)
            assert (ready.status_code, ready.json()["parts"]["writes"]) == (503, reason)
            assert role not in ready.text
        ready = await client.get(READY)
        assert (ready.status_code, ready.json()["parts"]["writes"]) == (200, "ok")
        assert (await _submit(client)).status_code == 201


async def test_a_service_whose_tables_refuse_right_rows_is_not_ready(client: AsyncClient, own_url: str) -> None:
    assert (await _submit(client)).status_code == 201
    with psycopg.connect(make_url(own_url).set(username="postgres", password=None).render_as_string(), autocommit=True) as owner:
        owner.execute("ALTER TABLE tasks ADD COLUMN theirs int NOT NULL DEFAULT 1")
        owner.execute("ALTER TABLE tasks ALTER COLUMN theirs DROP DEFAULT")
        assert (await _submit(client)).status_code == 500
        ready = await client.get(READY)
        assert (ready.status_code, ready.json()["parts"]["writes"]) == (503, "a trial write failed (SQLSTATE 23502)")
        owner.execute("ALTER TABLE tasks DROP COLUMN theirs")
        assert (await client.get(READY)).status_code == 200
        assert (await _submit(client)).status_code == 201


@pytest.mark.parametrize("fault", [_read_only, _no_right, _no_table, _full])
async def test_a_service_that_has_never_written_knows_whether_it_could(client: AsyncClient, own_url: str, fault: Fault) -> None:
    role = str(make_url(own_url).username)
    with psycopg.connect(make_url(own_url).set(username="postgres", password=None).render_as_string(), autocommit=True) as owner:
        with fault(owner, role) as reason:
            ready = await client.get(READY)
            assert (ready.status_code, ready.json()["parts"]["writes"]) == (503, reason)
        assert (await client.get(READY)).status_code == 200


async def test_probes_write_nothing_while_submissions_show_that_writes_work(client: AsyncClient, own_url: str) -> None:
    assert (await _submit(client)).status_code == 201
    with psycopg.connect(make_url(own_url).set(username="postgres", password=None).render_as_string(), autocommit=True) as connection:
        drawn = "SELECT last_value FROM events_id_seq"
        before = connection.execute(drawn).fetchone()
        for _ in range(5):
            assert (await client.get(READY)).status_code == 200
        assert connection.execute(drawn).fetchone() == before


async def test_an_idle_service_tries_a_write_now_and_then_and_leaves_nothing(client: AsyncClient, own_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_record, "PROVEN_FOR", 0.0)
    for _ in range(3):
        assert (await client.get(READY)).status_code == 200
    with psycopg.connect(own_url, autocommit=True) as connection:
        assert connection.execute("SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM events)").fetchone() == (0, 0)
