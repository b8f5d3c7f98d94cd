"""The configured PostgreSQL, an engine for it, and its outages by one name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from taskyard.errors import ConfigurationError, Unavailable
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
    return create_engine(
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


def libpq_options(**settings: object) -> str:
    """Settings of a session as libpq's ``options``."""
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


#: SQLSTATEs of a server that is stopping, starting, full, or not set up yet: no such database, no such table.
_AWAY = frozenset({"57P01", "57P02", "57P03", "53300", "3D000", "42P01"})
_TOO_LONG = "57014"


def is_outage(error: BaseException) -> bool:
    """Does this error mean that the database can't be reached now, rather than that a statement was wrong?"""
    if isinstance(error, PoolTimeout | InterfaceError | ConnectionError | TimeoutError):
        return True
    # asyncpg's own errors come through unwrapped while it connects.
    if getattr(getattr(error, "orig", error), "sqlstate", None) in _AWAY:
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError)
    return isinstance(error, OSError)


@contextmanager
def outages_named(at: URL | str | None = None) -> Iterator[None]:
    """Turn what the drivers raise when the database is away into :class:`Unavailable`.

    With ``at``, its message names the host and has the driver's own words: for operators, not for clients.
    """
    try:
        yield
    except Exception as error:
        if getattr(getattr(error, "orig", error), "sqlstate", None) == _TOO_LONG:
            raise Unavailable("The database took too long for this, and was stopped. A list, or an action, with more filters is quicker.") from error
        if is_outage(error):
            raise Unavailable(f"The database can't be reached now: {_operators_words(make_url(at), error) if at else type(error).__name__}") from error
        raise


def _operators_words(url: URL, error: Exception) -> str:
    host, port = url.host or url.query.get("host", "localhost"), url.port or url.query.get("port", 5432)
    words = " ".join(str(getattr(error, "orig", None) or error).split("\n", 1)[0].split())
    return f"host {host}, port {port}: {words or type(error).__name__}"
