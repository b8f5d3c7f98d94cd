"""Is this a database that Taskyard can work on? Asked by each role at its start, so that a wrong one is a sentence and not a thousand errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, text

from taskyard.certificates import check_certificates
from taskyard.database import connect, postgres_url
from taskyard.database_errors import driver_words
from taskyard.errors import ConfigurationError
from taskyard.hangs import cut
from taskyard.schema_version import TABLE as VERSION_TABLE
from taskyard.settings import DatabaseSettings
from taskyard.tables import metadata

ENCODING: Final = "UTF8"
#: Other connections that are opened to find out whether a pooler deals one's own backend out to others. Poolers that take the backend that
#: was given back last show it at the first; those that take turns, at the second or third.
_ROUNDS: Final = 4
#: Seconds that a pooler gets to find a backend for a connection.
_PATIENCE: Final = 5.0


def check_database(settings: DatabaseSettings) -> None:
    """Refuse a certificate that is none, a database whose encoding is not UTF8, a search path by which others' tables hide ours, and a
    pooler that deals backends out by the transaction.

    A database that can't be reached is none of its business: roles wait for it.

    Raises:
        ConfigurationError: with what to do.
    """
    check_certificates(postgres_url(settings))
    try:
        with connect(settings, role="check") as connection:
            if problem := encoding_problem(str(connection.info.parameter_status("server_encoding"))):
                raise ConfigurationError(problem)
            if problem := hidden_tables_problem(connection):
                raise ConfigurationError(problem)
            if is_pooled(connection) and not keeps_backend(settings, connection):
                raise ConfigurationError(_SHARED)
    except psycopg.Error as error:
        if "unsupported startup parameter" in str(error):
            raise ConfigurationError(
                f"database.url: a connection pooler refuses the connection: {driver_words(error)}. "
                "Leave the parameter out, or name it in PgBouncer's ignore_startup_parameters or track_extra_parameters."
            ) from error


def check_encoding(connection: Connection) -> None:
    """Refuse a database whose encoding is not UTF8. Raises ConfigurationError."""
    if problem := encoding_problem(server_encoding(connection)):
        raise ConfigurationError(problem)


def server_encoding(connection: Connection) -> str:
    """The encoding that the database was made with."""
    return str(connection.execute(text("SHOW server_encoding")).scalar())


def encoding_problem(encoding: str) -> str | None:
    """What is wrong with a database's encoding, if anything."""
    if encoding == ENCODING:
        return None
    return f"The database's encoding is {encoding}, and Taskyard needs {ENCODING}: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0."


#: Tables that an unqualified name of ours means, in another schema than our version table.
_HIDING = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM unnest(%s::text[]) AS ours (name)
  JOIN pg_class c ON c.oid = to_regclass(ours.name) JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relnamespace <> (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(%s)) ORDER BY 1
"""


def hidden_tables_problem(connection: psycopg.Connection[Any]) -> str | None:
    """What is wrong with the search path, if anything: a schema before ours may have tables of the same names. Raises psycopg.Error."""
    with _patience(connection):
        hiding = [row[0] for row in connection.execute(_HIDING, (list(metadata.tables), VERSION_TABLE))]
    if not hiding:
        return None
    return (
        f"{hiding[0]} hides Taskyard's table of this name, which is in another schema. "
        "Name Taskyard's schema alone in the search path: ?options=-csearch_path%3DNAME in DATABASE_URL, or ALTER ROLE ... SET search_path."
    )


_SHARED: Final = (
    "database.url: a connection pooler deals PostgreSQL's backends out by the transaction or the statement. Taskyard listens on its connections and keeps "
    "prepared statements and settings, so each needs a backend of its own: set pool_mode=session for this database, or connect past the pooler."
)


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Does a pooler stand in between? The process id that it gives is none of PostgreSQL's."""
    return _backend(connection) != connection.info.backend_pid


def keeps_backend(settings: DatabaseSettings, own: psycopg.Connection[Any]) -> bool:
    """Has ``own``, which commits each statement, a backend of its own? Not so if the pooler gives it to others, or others' to it. Raises psycopg.Error."""
    seen = {_backend(own)}
    for _ in range(_ROUNDS):
        try:
            other = _held_by_another(settings)
        except psycopg.OperationalError as error:
            if "pooling mode" in str(error):
                return False
            raise
        if other is None:
            return True
        with other:
            if _backend(other) in seen or _backend(own) not in seen:
                return False
    return True


def _held_by_another(settings: DatabaseSettings) -> psycopg.Connection[Any] | None:
    """Another connection, in a transaction; None where the pooler has no backend left for it, as one in session mode may."""
    other = connect(settings, role="check")
    with _patience(other) as silence:
        try:
            other.autocommit = False
            other.execute("SELECT 1")
        except psycopg.OperationalError:
            other.close()
            if silence.is_alive():
                raise
            return None
    return other


def _backend(connection: psycopg.Connection[Any]) -> int:
    with _patience(connection):
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None, "SELECT without FROM has a row"
    return int(row[0])


@contextmanager
def _patience(connection: psycopg.Connection[Any]) -> Iterator[threading.Timer]:
    """Cuts a connection that is silent for too long. The timer is alive until then."""
    silence = threading.Timer(_PATIENCE, cut, [connection])
    silence.start()
    try:
        yield silence
    finally:
        silence.cancel()
