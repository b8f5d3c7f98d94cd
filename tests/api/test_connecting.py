"""The web service's driver and the other roles' driver are one client to PostgreSQL: same URL, same server, same session."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from taskyard.database import connect, sync_engine
from taskyard.listener import Listener
from taskyard.postgres_url import read_url
from taskyard.sessions import CORRECTNESS
from taskyard.settings import DatabaseSettings
from taskyard_api.connecting import Connector
from tests.databases import admin_engine
from tests.ground import EmbeddedServer, free_port, private_postgres

pytestmark = pytest.mark.anyio

#: What a database, a role, or a user's environment may say otherwise.
HOSTILE = {
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "row_security": "off",
    "lock_timeout": "1s",
    "statement_timeout": "2s",
    "enable_seqscan": "on",
    "jit": "on",
}


def settings_for(url: str, **more: Any) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), **more)


def with_query(url: str, query: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{query}"


def by_psycopg(settings: DatabaseSettings, *names: str) -> list[str]:
    """What a role's session has."""
    engine = sync_engine(settings, role="test", pool_size=1)
    try:
        with engine.connect() as connection:
            return [str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names]
    finally:
        engine.dispose()


@asynccontextmanager
async def by_asyncpg(settings: DatabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    connection = await Connector(settings).connect("test")
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "query",
    [
        "application_name=x",
        "connect_timeout=5",
        "gssencmode=disable",
        "channel_binding=prefer",
        "keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=2&tcp_user_timeout=9000",
        "keepalives=0",
        "target_session_attrs=read-write",
        "target_session_attrs=primary",
        "sslmode=prefer",
        "sslmode=disable",
        "krbsrvname=postgres",
        "ssl_min_protocol_version=TLSv1.2",
        "keepalives_idle=0&keepalives_interval=0&keepalives_count=0&tcp_user_timeout=0",
        "client_encoding=utf8",
        "options=-csearch_path%3Dapp",
        "options=-c%20geqo%3Doff%20-c%20search_path%3Dapp",
    ],
)
async def test_each_parameter_of_the_url_works_with_both_drivers(database_url: str, query: str) -> None:
    settings = settings_for(with_query(database_url, query))
    path = "app" if "search_path" in query else '"$user", public'
    assert by_psycopg(settings, "search_path", "application_name") == [path, "taskyard-test"]
    async with by_asyncpg(settings) as connection:
        assert [await connection.fetchval(f"SHOW {name}") for name in ("search_path", "application_name")] == [path, "taskyard-test"]


async def test_options_in_the_environment_hold_for_both_drivers(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=app")
    settings = settings_for(database_url)
    assert by_psycopg(settings, "search_path") == ["app"]
    async with by_asyncpg(settings) as connection:
        assert await connection.fetchval("SHOW search_path") == "app"


@pytest.fixture
def hostile(database_url: str) -> Iterator[str]:
    """A database that sets everything otherwise than Taskyard needs it."""
    admin, name = admin_engine(database_url), make_url(database_url).database
    with admin.connect() as connection:
        for setting, value in HOSTILE.items():
            connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
        yield database_url
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = 0")
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" RESET ALL')


@pytest.mark.parametrize("environment", [{}, {"PGCLIENTENCODING": "LATIN1", "PGTZ": "Asia/Kathmandu", "PGDATESTYLE": "German", "PGOPTIONS": "-cjit=on"}])
async def test_each_session_has_what_it_needs_whatever_database_and_environment_say(
    hostile: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wanted = CORRECTNESS | {"enable_seqscan": "off", "jit": "off", "statement_timeout": "7s", "idle_in_transaction_session_timeout": "5s"}
    with psycopg.connect(make_url(hostile).set(drivername="postgresql").render_as_string(False)) as plain:
        plain.execute("SET statement_timeout = 0")
        known = {row[0] for row in plain.execute("SELECT name FROM pg_settings")}
    wanted = {name: value for name, value in wanted.items() if name in known}
    settings = settings_for(hostile, statement_timeout=7)
    assert dict(zip(wanted, by_psycopg(settings, *wanted), strict=True)) == wanted
    async with by_asyncpg(settings) as connection:
        assert {name: await connection.fetchval(f"SHOW {name}") for name in wanted} == wanted


def test_a_listener_outlives_what_the_database_says_of_idle_sessions(database_url: str) -> None:
    admin, name = admin_engine(database_url), make_url(database_url).database
    with admin.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET idle_session_timeout = '200ms'")
    engine = sync_engine(settings_for(f"{database_url}{'&' if '?' in database_url else '?'}connect_timeout=7"), role="test", pool_size=1)
    listener = Listener(engine, "news")
    try:
        listener.connect()
        # Younger than the listener: once it is ended, the listener would have been, too.
        plain = make_url(database_url).set(drivername="postgresql").render_as_string(False)
        with psycopg.connect(plain, autocommit=True) as other, pytest.raises(psycopg.OperationalError):
            list(other.notifies(timeout=60))
        with engine.begin() as connection:
            connection.exec_driver_sql("NOTIFY news, 'heard'")
        assert listener.take(timeout=60) == {"heard"}
    finally:
        listener.close()
        engine.dispose()
        with admin.connect() as connection:
            connection.exec_driver_sql("SET idle_session_timeout = 0")
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" RESET ALL')


# --- several hosts ---


@pytest.fixture(scope="module")
def standby(short_tmp: Path) -> Iterator[EmbeddedServer]:
    """A server that takes no writes."""
    server = private_postgres(Path(tempfile.mkdtemp(dir=short_tmp)))
    admin = admin_engine(server.url)
    with admin.connect() as connection:
        connection.exec_driver_sql("ALTER DATABASE postgres SET default_transaction_read_only = on")
    yield server
    server.close()


def place_of(url: str) -> tuple[str, int]:
    """The host, or the folder of sockets, and the port of a URL."""
    found = read_url(url)
    return found.hosts[0]


def several(user: str | None, database: str | None, *places: tuple[str, int]) -> str:
    """A URL with several hosts."""
    return f"postgresql://{user}@/{database}?host={','.join(host for host, _ in places)}&port={','.join(str(port) for _, port in places)}"


@pytest.mark.parametrize("first", ["nobody", "standby"])
async def test_the_first_host_that_takes_writes_is_used_by_both_drivers(standby: EmbeddedServer, postgres_url: str, first: str) -> None:
    other = ("127.0.0.1", free_port()) if first == "nobody" else place_of(standby.url)
    settings = settings_for(several("postgres", "postgres", other, place_of(postgres_url)))
    with connect(settings, role="test") as connection:
        row = connection.execute("SHOW default_transaction_read_only").fetchone()
        assert row == ("off",)
    async with by_asyncpg(settings) as driver:
        assert await driver.fetchval("SHOW default_transaction_read_only") == "off"


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "127.0.0.1", server.getsockname()[1]


async def test_a_host_that_is_silent_is_not_asked_first_again(postgres_url: str, silent: tuple[str, int]) -> None:
    good = place_of(postgres_url)
    connector = Connector(settings_for(several("postgres", "postgres", silent, good), connect_timeout=0.5))
    connection = await connector.connect("test")
    await connection.close()
    assert connector.first == good


async def test_a_host_that_stayed_silent_until_the_request_gave_up_is_not_asked_first_again(postgres_url: str, silent: tuple[str, int]) -> None:
    good = place_of(postgres_url)
    connector = Connector(settings_for(several("postgres", "postgres", silent, good), connect_timeout=60))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await connector.connect("test")
    assert connector.first == good
    connection = await connector.connect("test")
    await connection.close()
