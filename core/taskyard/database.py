"""The configured PostgreSQL, and an engine for it."""

from __future__ import annotations

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.event import listen
from sqlalchemy.exc import ArgumentError

from taskyard.database_errors import drop_useless
from taskyard.errors import ConfigurationError
from taskyard.settings import DatabaseSettings
from taskyard.storable import from_json

APPLICATION = "taskyard"
#: libpq's options with which the kernel finds out that a host is gone: what is sent must be taken (ms), and silence is asked about (s).
KEEPALIVE = {"tcp_user_timeout": 15_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

#: How PostgreSQL plans for all roles. Statements are prepared, and a plan is kept until the next ANALYZE: one that was made while a table was
#: small, and reads all of it, would read all of it still when it has a hundred thousand rows. All that is asked often has an index.
#: Compiling our short statements takes longer than running them: 160 ms of 175 for the queues' depths.
PLANNING = {"enable_seqscan": "off", "jit": "off"}

#: Milliseconds that a transaction may stand still before PostgreSQL ends it. A role that is stopped or cut off in the middle of one
#: holds its rows, and with them everybody who wants these: other workers, and the reaper that would give it up.
STANDSTILL = 5_000


def database_url(settings: DatabaseSettings, driver: str) -> URL:
    """The configured URL for a driver (``psycopg`` or ``asyncpg``), whichever one it was written for.

    Raises:
        ConfigurationError: none is set, or it is no PostgreSQL URL.
    """
    if settings.url is None:
        raise ConfigurationError(
            "database.url is not set. Set DATABASE_URL=postgresql://user:password@host/name, or use `taskyard up`, which brings a database."
        )
    try:
        url = make_url(settings.url.get_secret_value())
    except (ArgumentError, ValueError) as error:
        # The error's text has the URL, and with it the password.
        raise ConfigurationError("database.url: expected a URL such as postgresql://user:password@host:5432/name") from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(f"database.url: Taskyard needs PostgreSQL (postgresql://...), not {url.get_backend_name()}://")
    return url.set(drivername=f"postgresql+{driver}")


def sync_engine(settings: DatabaseSettings, *, role: str, pool_size: int | None = None) -> Engine:
    """An engine for worker, dispatcher and commands. ``role`` names it in pg_stat_activity."""
    engine = create_engine(
        database_url(settings, "psycopg"),
        json_deserializer=from_json,
        pool_size=pool_size or settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout,
        pool_pre_ping=False,
        connect_args={
            "connect_timeout": max(1, round(settings.connect_timeout)),
            **KEEPALIVE,
            "application_name": f"{APPLICATION}-{role}",
            "options": libpq_options(statement_timeout=int(settings.statement_timeout * 1000), idle_in_transaction_session_timeout=STANDSTILL, **PLANNING),
        },
    )
    listen(engine, "handle_error", drop_useless)
    return engine


def libpq_options(**settings: object) -> str:
    """Settings of a session as libpq's ``options``."""
    return " ".join(f"-c {name}={value}" for name, value in settings.items())
