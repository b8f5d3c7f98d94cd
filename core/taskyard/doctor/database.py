"""Checks of PostgreSQL: is it there, does it let us in, is it as we need it?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from sqlalchemy import Connection, text

from taskyard import dispatchers, interference, queries, readiness, sequences
from taskyard.database import database_url, sync_engine
from taskyard.database_check import encoding_problem, hidden_tables_problem, is_pooled, keeps_backend, server_encoding
from taskyard.database_errors import NO_RIGHTS, driver_words, is_outage, sqlstate_of
from taskyard.doctor import Finding, fail, ok, warn
from taskyard.doctor.waiting import check_waiting
from taskyard.errors import ConfigurationError
from taskyard.settings import DatabaseSettings, Settings
from taskyard.tables import SCHEMA_REVISION
from taskyard.write_check import missing_rights

#: Seconds that a statement of a check may take.
STATEMENT_SECONDS = 5.0
#: Seconds by which the clocks of this machine and of the database may differ.
MOST_SKEW = 2.0
#: Names that one finding shows.
SHOWN = 8
OLDEST_SERVER = 150000
_SESSION_MODE = "Set pool_mode = session for Taskyard's database, or connect to PostgreSQL directly."
_CONNECTIONS = "Lower database.pool_size, or raise max_connections of the server (or the limit of the role or the database)."
#: What to do about a login that is refused, by the server's words, the first that fit: libpq tells no SQLSTATE of one.
_ADVICE = {
    "password authentication failed": "Correct the user and password in database.url (DATABASE_URL).",
    "no password supplied": "Give the password in database.url (DATABASE_URL).",
    "no pg_hba.conf entry": "Let this user, machine and database in: see the server's pg_hba.conf.",
    "not permitted to log in": "Let the role log in: ALTER ROLE NAME LOGIN.",
    "permission denied": "Grant the role of database.url this right, or make it the owner.",
    "too many c": _CONNECTIONS,
    "connection slots are reserved": _CONNECTIONS,
    'role "': "Correct the user in database.url (DATABASE_URL), or create the role: createuser NAME.",
    'database "': "Correct the database's name in database.url (DATABASE_URL), or create it: createdb NAME.",
    "certificate": "Correct sslmode, sslrootcert and the host's name in database.url (DATABASE_URL), or the server's certificate.",
    "does not support SSL": "Turn TLS on in the server, or ask for none: sslmode in database.url (DATABASE_URL).",
    "the database system is": "Wait until the server has started or recovered; its own log says what it does.",
    "pooling mode": _SESSION_MODE,
    "startup parameter": "A pooler refuses a parameter of database.url: leave it out, or name it in PgBouncer's ignore_startup_parameters.",
}
_GRANT = "Grant the role these rights (or make it the owner), or let the server take writes."
_NOT_THERE = "Start PostgreSQL, or correct database.url (DATABASE_URL)."


def advice_for(words: str) -> str:
    """What to do about a refused connection."""
    return next((advice for part, advice in _ADVICE.items() if part in words), _NOT_THERE)


def check_database(settings: Settings) -> Iterator[Finding]:
    """Everything about the database; where it can't be reached, that alone."""
    try:
        url = database_url(settings.database)
    except ConfigurationError as error:
        yield fail("database", str(error), "Set DATABASE_URL; for a `taskyard up` with embedded parts, use its --data-dir.")
        return
    engine = sync_engine(_quick(settings.database), role="doctor", pool_size=2)
    place = f"{url.host or url.query.get('host', 'localhost')}:{url.port or 5432}/{url.database or ''}"
    try:
        with engine.connect() as connection:
            yield from _check_connected(connection, settings, place)
    except Exception as error:
        if not is_outage(error):
            raise
        words = driver_words(error)
        yield fail("rights", words, _GRANT) if sqlstate_of(error) == NO_RIGHTS else fail("database", f"{place}: {words}", advice_for(words))
    finally:
        engine.dispose()


def _quick(database: DatabaseSettings) -> DatabaseSettings:
    return database.model_copy(update={"statement_timeout": min(database.statement_timeout, STATEMENT_SECONDS)})


def _check_connected(connection: Connection, settings: Settings, place: str) -> Iterator[Finding]:
    yield _server(connection, place)
    yield _encoding(connection)
    yield from _session(connection, settings.database)
    yield _clock(connection)
    revision = queries.schema_revision(connection)
    yield _schema(revision)
    if not queries.schema_is_usable(revision):
        return
    connection.rollback()
    missing = missing_rights(connection)
    if missing:
        yield _rights(missing)
    parts = readiness.look(connection, settings, 0)
    connection.rollback()
    if not missing:
        yield _writes(parts["writes"])
    yield _sequences(connection)
    yield from _interference(connection)
    yield from _roles(parts, settings)
    yield _broker_as_seen(connection, settings)
    yield from check_waiting(connection, settings)


def _server(connection: Connection, place: str) -> Finding:
    row = connection.execute(text("SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS name")).one()
    detail = f"{place}: PostgreSQL {row.name}"
    return ok("database", detail) if row.number >= OLDEST_SERVER else fail("database", detail, "Upgrade the server to PostgreSQL 15 or later.")


def _encoding(connection: Connection) -> Finding:
    encoding = server_encoding(connection)
    problem = encoding_problem(encoding)
    return fail("encoding", encoding, problem) if problem else ok("encoding", encoding)


def _session(connection: Connection, settings: DatabaseSettings) -> Iterator[Finding]:
    connection.rollback()
    # Another connection might find no backend free.
    own: Any = connection.connection.driver_connection
    own.autocommit = True
    try:
        if problem := hidden_tables_problem(own):
            yield fail("search path", "others' tables hide Taskyard's", problem)
        yield _pooler(own, settings)
    finally:
        own.autocommit = False


def _pooler(own: psycopg.Connection[Any], settings: DatabaseSettings) -> Finding:
    if not is_pooled(own):
        return ok("pooler", "none: the server is reached directly")
    if keeps_backend(settings, own):
        return ok("pooler", "there is one, in session mode")
    return fail("pooler", "there is one, in transaction or statement mode", _SESSION_MODE)


def _clock(connection: Connection) -> Finding:
    before = time.time()
    there = float(connection.execute(text("SELECT EXTRACT(epoch FROM clock_timestamp())::float8")).scalar_one())
    skew = there - (before + time.time()) / 2
    connection.rollback()
    detail = f"this machine and the database differ by {abs(skew):.1f} s"
    if abs(skew) <= MOST_SKEW:
        return ok("clock", detail)
    return warn("clock", detail, "Synchronize both clocks (NTP): times that clients send are compared with the database's.")


def _schema(revision: str | None) -> Finding:
    if queries.schema_is_usable(revision):
        newer = f", newer than {SCHEMA_REVISION} of this version" if revision != SCHEMA_REVISION else ""
        return ok("schema", f"revision {revision}{newer}")
    return fail("schema", f"revision {revision or 'none'}, needs {SCHEMA_REVISION}", "Run `taskyard db upgrade`.")


def _writes(state: str) -> Finding:
    if state == readiness.OK:
        return ok("rights", "the role may read and write all tables, and the server takes writes")
    return fail("rights", state, _GRANT)


def _rights(missing: Sequence[str]) -> Finding:
    return fail("rights", f"the role lacks {', '.join(missing[:SHOWN])}{_and_more(missing)}", _GRANT)


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def _sequences(connection: Connection) -> Finding:
    late = sequences.behind(connection)
    if not late:
        return ok("sequences", "each is ahead of its table")
    detail = ", ".join(f"{one.sequence} is at {one.drawn}, and its table at {one.highest}" for one in late)
    return fail("sequences", detail, f"As the owner of the tables, run: {'; '.join(one.remedy for one in late)}.")


def _interference(connection: Connection) -> Iterator[Finding]:
    if there := interference.found(connection):
        detail = f"{', '.join(there[:SHOWN])}{_and_more(there)}"
        yield warn("others' triggers", detail, "Make sure that none of them keeps a row out or changes it: drop or disable what does.")


def _roles(parts: dict[str, str], settings: Settings) -> Iterator[Finding]:
    for part, command in (("dispatcher", "taskyard dispatcher"), ("workers", "taskyard worker")):
        state = parts[part]
        if state == readiness.OK:
            yield ok(part, "alive")
        elif state.startswith("none"):
            yield fail(part, state, f"Start `{command}`, with this database and broker.")
        else:
            yield fail(part, state, "Restart those that are stuck: `taskyard health worker` names them, on their machines.")


def _broker_as_seen(connection: Connection, settings: Settings) -> Finding:
    """From where the dispatchers are, which may not be here."""
    name = "broker from dispatchers"
    state = dispatchers.broker(connection, settings)
    if not state.dispatchers:
        return warn(name, "no dispatcher has looked lately", "Start `taskyard dispatcher`.")
    if not state.away:
        return ok(name, f"reached by {state.dispatchers}")
    return fail(name, f"away for {state.away} of {state.dispatchers}: {state.error}", "See the advice for the broker, on the dispatchers' machines.")
