"""Whose fault is a database error: raised by real servers, through both drivers, raw and wrapped by SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from taskyard.database_errors import (
    CALLERS_KEYS,
    OutageLog,
    driver_words,
    duplicate_of,
    is_bad_data,
    is_mistake,
    is_outage,
    outages_named,
    sqlstate_of,
)
from taskyard.errors import IllegalTransition, TaskyardError, Unavailable
from taskyard.tables import metadata

pytestmark = pytest.mark.one_pair
Run = Callable[[str, str], None]

OUTAGES = {
    "08P01": "a pooler refuses a parameter",
    "0A000": "a plan was cached before the table was altered",
    "25006": "read-only",
    "26000": "a pooler changed the session",
    "28000": "pg_hba.conf refuses",
    "28P01": "the password was changed",
    "3D000": "no such database",
    "3F000": "no such schema",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "42501": "a right is missing",
    "42601": "a syntax error",
    "42703": "a column is missing",
    "42883": "a function is missing",
    "42P01": "a table is missing",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55000": "not in prerequisite state",
    "55P03": "a lock is held",
    "57014": "a statement took too long",
    "57P01": "the server is stopping",
    "58030": "an I/O error",
    "F0000": "a broken configuration file",
    "P0001": "a trigger of somebody else refuses",
    "XX000": "an internal error",
    "XX001": "corrupted data",
}
BAD_DATA = ["22001", "22003", "22021", "22P05", "23502", "23503", "23505", "23514", "54000", "54001"]


def _raw_psycopg(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())


def _wrapped_psycopg(url: str, statement: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def _raw_asyncpg(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def _wrapped_asyncpg(url: str, statement: str) -> None:
    async def run() -> None:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.execute(text(statement))

    asyncio.run(run())


@pytest.fixture(params=[_raw_psycopg, _wrapped_psycopg, _raw_asyncpg, _wrapped_asyncpg])
def run(request: pytest.FixtureRequest) -> Run:
    ways: Run = request.param
    return ways


def _raised(run: Run, url: str, statement: str) -> Exception:
    try:
        run(url, statement)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_every_error_that_does_not_blame_the_data_is_an_outage(run: Run, database_url: str) -> None:
    for state, what in OUTAGES.items():
        error = _raised(run, database_url, f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$")
        assert (sqlstate_of(error), is_outage(error), is_bad_data(error)) == (state, True, False), what
        assert driver_words(error).startswith("so it is")


def test_data_that_postgresql_refuses_is_no_outage(run: Run, database_url: str) -> None:
    for state in BAD_DATA:
        error = _raised(run, database_url, f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$")
        assert (sqlstate_of(error), is_outage(error), is_bad_data(error)) == (state, False, True)


def test_a_duplicate_blames_the_data_only_if_a_caller_chose_the_value(run: Run, database_url: str) -> None:
    def raised(constraint: str) -> Exception:
        return _raised(run, database_url, f"DO $$ BEGIN RAISE EXCEPTION 'twice' USING ERRCODE = '23505', CONSTRAINT = '{constraint}'; END $$")

    known = {index.name for table in metadata.tables.values() for index in table.indexes} | {f"pk_{name}" for name in metadata.tables}
    assert known >= CALLERS_KEYS, "names that the tables have"
    for constraint in CALLERS_KEYS:
        error = raised(constraint)
        assert (duplicate_of(error), is_bad_data(error), is_outage(error), is_mistake(error)) == (constraint, True, False, False)
        assert "doctor" not in driver_words(error)
    for constraint in ("pk_events", "pk_deliveries", "somebodys_index"):
        error = raised(constraint)
        assert (duplicate_of(error), is_bad_data(error), is_outage(error), is_mistake(error)) == (constraint, False, True, True)
        assert ("taskyard doctor" in driver_words(error)) == constraint.startswith("pk_")


def test_a_login_that_is_refused_and_a_server_that_is_not_there_are_outages(run: Run, database_url: str) -> None:
    url = make_url(database_url)
    for wrong in (url.set(port=1, host="127.0.0.1", query={}), url.set(database="no_such"), url.set(host="no-such-host.invalid", query={})):
        error = _raised(run, wrong.render_as_string(hide_password=False), "SELECT 1")
        assert is_outage(error)
        assert not is_bad_data(error)


@pytest.mark.parametrize("value", ["\x00", 2**70])
def test_what_a_driver_cannot_encode_is_bad_data(database_url: str, value: Any) -> None:
    async def insert() -> None:
        engine = create_async_engine(make_url(database_url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.execute(text(f"SELECT CAST(:value AS {'text' if isinstance(value, str) else 'bigint'})"), {"value": value})

    with pytest.raises(Exception) as of_asyncpg:  # noqa: PT011  # which class it is, is the question
        asyncio.run(insert())
    assert (is_bad_data(of_asyncpg.value), is_outage(of_asyncpg.value)) == (True, False)
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection, pytest.raises(Exception) as of_psycopg:  # noqa: PT011
        connection.execute(text(f"SELECT CAST(:value AS {'text' if isinstance(value, str) else 'bigint'})"), {"value": value})
    assert (is_bad_data(of_psycopg.value), is_outage(of_psycopg.value)) == (True, False)


def test_errors_that_are_not_the_databases_are_neither() -> None:
    for error in (ValueError("x"), KeyError("x"), TaskyardError("x"), IllegalTransition("hold", "running", [])):
        assert (is_outage(error), is_bad_data(error)) == (False, False)
        with pytest.raises(type(error)), outages_named():
            raise error


def test_a_mistake_of_ours_is_known_from_a_trouble_of_the_server(run: Run, database_url: str) -> None:
    def mistake(statement: str) -> bool:
        return is_mistake(_raised(run, database_url, statement))

    assert mistake("SELEC 1")
    assert mistake("SELECT no_such_column FROM tasks")
    assert not mistake("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$")
    assert not mistake("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'insufficient_privilege'; END $$")


def test_clients_are_told_nothing_of_the_installation_and_operators_all(run: Run, database_url: str) -> None:
    refused = make_url(database_url).set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)
    with pytest.raises(Unavailable) as of_client, outages_named():
        run(refused, "SELECT 1")
    assert str(of_client.value) == "The database can't be reached now."
    with pytest.raises(Unavailable, match=r"can't be reached now\. Host 127\.0\.0\.1, port 1: .*(refused|failed)"), outages_named(at=refused):
        run(refused, "SELECT 1")
    with pytest.raises(Unavailable) as of_statement, outages_named():
        run(database_url, "SELECT secret FROM no_such_table")
    assert str(of_statement.value) == "The database can't do this now."


def test_the_words_of_an_error_have_no_row_in_them(run: Run, database_url: str) -> None:
    error = _raised(run, database_url, "DO $$ BEGIN RAISE EXCEPTION 'refused' USING DETAIL = 'Failing row contains (secret).', ERRCODE = 'P0001'; END $$")
    assert driver_words(error).startswith("refused")
    assert "secret" not in driver_words(error)
    missing = _raised(run, database_url, "SELECT 'secret' FROM no_such_table")
    assert driver_words(missing) == 'relation "no_such_table" does not exist', "and no statement"


def test_the_words_are_those_of_the_error_that_knows_the_reason() -> None:
    def raised(reason: Exception, cause: Exception) -> Exception:
        reason.__cause__ = cause
        return reason

    assert driver_words(raised(Unavailable("The database can't be reached now."), ConnectionRefusedError("refused"))) == "refused"
    assert driver_words(raised(ConnectionError("RabbitMQ blocks publishers"), TimeoutError("timed out"))) == "RabbitMQ blocks publishers"
    assert driver_words(raised(Unavailable("The database can't be reached now."), psycopg.OperationalError("no password"))) == "no password"


def test_an_outage_is_logged_once_in_a_while_and_not_for_each_who_meets_it(run: Run, database_url: str) -> None:
    outages = OutageLog()
    with capture_logs() as lines:
        for _ in range(3):
            outages.note(_raised(run, database_url, "DO $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$"))
        outages.note(_raised(run, database_url, "SELEC 1"))
    assert [(line["log_level"], line["event"], line["sqlstate"]) for line in lines] == [
        ("warning", "database.unavailable", "53100"),
        ("error", "database.refused", "42601"),
    ]
    assert "no space left" in lines[0]["error"]
