"""What each session sets, whatever the database, the role, the environment or a pooler sets: one list for psycopg, asyncpg and Alembic.

It is set by a statement after the connection is made, and not by startup parameters: PgBouncer refuses those, or forgets them.
``default_transaction_read_only`` is left alone: whoever sets it (a managed service whose disk is full, an operator in a failover) means it.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.event import listen

from taskyard.hangs import cut
from taskyard.settings import DatabaseSettings

#: What our statements and both drivers' readers take for granted.
CORRECTNESS: Final = {
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "standard_conforming_strings": "on",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}

#: How PostgreSQL plans for all roles. Statements are prepared, and a plan is kept until the next ANALYZE: one that was made while a table was
#: small, and reads all of it, would read all of it still when it has a hundred thousand rows. All that is asked often has an index.
#: Compiling our short statements takes longer than running them: 160 ms of 175 for the queues' depths.
PLANNING: Final = {"enable_seqscan": "off", "jit": "off"}

#: Milliseconds that a transaction may stand still before PostgreSQL ends it. A role that is stopped or cut off in the middle of one
#: holds its rows, and with them everybody who wants these: other workers, and the reaper that would give it up.
STANDSTILL: Final = 5_000


def of_roles(settings: DatabaseSettings, lock_timeout: float = 0.0) -> str:
    """The statement that sets up a role's session. ``lock_timeout`` is in seconds; 0: no other than a statement has."""
    timeouts = {
        "statement_timeout": str(int(settings.statement_timeout * 1000)),
        "idle_in_transaction_session_timeout": str(STANDSTILL),
        "lock_timeout": str(int(lock_timeout * 1000)),
    }
    return statement(CORRECTNESS | PLANNING | timeouts)


def of_migrations() -> str:
    """The statement that sets up a migration's session. It reads whole tables, and takes its time between statements."""
    return statement(CORRECTNESS | {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"})


def statement(wanted: dict[str, str]) -> str:
    """A statement that sets these for the session. A PostgreSQL that is too old to have one goes without.

    Each row begins with the backend's process id: behind a pooler, the drivers know only one that the pooler made up.
    """
    rows = ", ".join(f"('{name}', '{value}')" for name, value in wanted.items())
    known = "current_setting(name, true) IS NOT NULL"
    return f"SELECT pg_backend_pid(), set_config(name, value, false) FROM (VALUES {rows}) AS wanted (name, value) WHERE {known}"


def set_up(engine: Engine, session: str, seconds: float) -> None:
    """Have every new connection of a psycopg engine run a statement first, within ``seconds``: no server's silence may hold a thread up."""

    def on_connect(connection: Any, _record: Any) -> None:
        silence = threading.Timer(seconds, cut, [connection])
        silence.start()
        try:
            connection.autocommit = True
            connection.execute(session)
            connection.autocommit = False
        finally:
            silence.cancel()

    # Before SQLAlchemy asks its own first questions.
    listen(engine, "connect", on_connect, insert=True)
