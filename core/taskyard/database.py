"""The configured PostgreSQL, and an engine for it."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.event import listen

from taskyard import sessions
from taskyard.database_errors import drop_useless
from taskyard.errors import ConfigurationError
from taskyard.postgres_url import PostgresUrl, read_url
from taskyard.settings import DatabaseSettings
from taskyard.storable import from_json

APPLICATION = "taskyard"
#: libpq's options with which the kernel finds out that a host is gone: what is sent must be taken (ms), and silence is asked about (s).
KEEPALIVE = {"tcp_user_timeout": "15000", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}


def postgres_url(settings: DatabaseSettings) -> PostgresUrl:
    """The configured URL's meaning.

    Raises:
        ConfigurationError: none is set, it is no PostgreSQL URL, or not all of it can be had by both drivers.
    """
    if settings.url is None:
        raise ConfigurationError(
            "database.url is not set. Set DATABASE_URL=postgresql://user:password@host/name, or use `taskyard up`, which brings a database."
        )
    return read_url(settings.url.get_secret_value())


def connect_timeout(settings: DatabaseSettings) -> float:
    """Seconds that a connection may take to be made: those that the URL says, or else the settings."""
    return float(postgres_url(settings).parameters.get("connect_timeout", 0)) or settings.connect_timeout


def libpq_arguments(settings: DatabaseSettings, *, role: str) -> dict[str, Any]:
    """libpq's keywords for a connection to the configured database. ``role`` names it in pg_stat_activity. Raises ConfigurationError."""
    ours = {
        "connect_timeout": str(max(1, round(connect_timeout(settings)))),
        "application_name": f"{APPLICATION}-{role}",
        "client_encoding": "UTF8",
    }
    url = postgres_url(settings)
    return {name: value for name, value in KEEPALIVE.items() if name not in url.parameters} | url.libpq() | ours


def database_url(settings: DatabaseSettings) -> URL:
    """The configured database as SQLAlchemy's URL for psycopg, for engines and for messages. Raises ConfigurationError."""
    return _as_url(postgres_url(settings).libpq())


def _as_url(arguments: dict[str, str]) -> URL:
    """libpq's keywords as a URL. One host is written as people know it; a folder or several hosts can be written as parameters only."""
    rest = dict(arguments)
    host, port = rest["host"], rest["port"]
    single = "," not in host and not host.startswith("/")
    if single:
        del rest["host"], rest["port"]
    user, password, database = rest.pop("user"), rest.pop("password", None), rest.pop("dbname")
    return URL.create("postgresql+psycopg", user, password, host if single else None, int(port) if single else None, database, rest)


def sync_engine(settings: DatabaseSettings, *, role: str, pool_size: int | None = None, lock_timeout: float = 0.0) -> Engine:
    """An engine for worker, dispatcher and commands. ``role`` names it in pg_stat_activity, ``lock_timeout`` is in seconds, 0 for none.

    Raises:
        ConfigurationError: the settings name no database, or not one that both drivers can have.
    """
    engine = create_engine(
        _as_url(libpq_arguments(settings, role=role)),
        json_deserializer=from_json,
        pool_size=pool_size or settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout,
        pool_pre_ping=False,
    )
    listen(engine, "handle_error", drop_useless)
    sessions.set_up(engine, sessions.of_roles(settings, lock_timeout), connect_timeout(settings))
    return engine


def connect(settings: DatabaseSettings, *, role: str) -> psycopg.Connection[Any]:
    """One connection by psycopg, which commits each statement. Raises psycopg.Error, ConfigurationError."""
    return psycopg.connect(**libpq_arguments(settings, role=role), autocommit=True)
