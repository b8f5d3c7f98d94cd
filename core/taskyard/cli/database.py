"""For commands that speak to the database and not to the service."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from sqlalchemy import Engine

from taskyard import queries
from taskyard.database import database_url, sync_engine
from taskyard.database_errors import outages_named
from taskyard.errors import Unavailable
from taskyard.pythons import python
from taskyard.settings import BrokerSettings, DatabaseSettings, Settings, load_settings

DataDir = Annotated[Path, typer.Option(help="Folder of the embedded database, where no DATABASE_URL is set.")]
RunningDataDir = Annotated[Path, typer.Option(help="Folder of a running `taskyard up` with embedded parts, where no URLs are set.")]
HERE = Path(".taskyard")


@contextmanager
def opened(data_dir: Path, role: str) -> Iterator[Engine]:
    """The configured database, or the embedded one: of a `taskyard up` that runs, or started for this alone.

    Raises:
        Unavailable: it can't be reached, or its schema is not up to date.
    """
    settings = load_settings()
    if settings.database.url is not None:
        with connected(settings.database, role) as engine:
            yield engine
        return
    from taskyard.embedded import running_postgres, start_postgres  # Here, not above: it needs an extra.

    if url := running_postgres(data_dir):
        with connected(DatabaseSettings(url=SecretStr(url)), role) as engine:
            yield engine
        return
    server = start_postgres(data_dir)
    try:
        _migrate(server.url)
        with connected(DatabaseSettings(url=SecretStr(server.url)), role) as engine:
            yield engine
    finally:
        server.stop()


def with_embedded(settings: Settings, data_dir: Path) -> Settings:
    """The settings with the addresses of the embedded servers that run on ``data_dir``, where no URLs are set."""
    found: dict[str, DatabaseSettings | BrokerSettings] = {}
    if settings.database.url is None or settings.broker.url is None:
        from taskyard.embedded import running_broker, running_postgres  # Here, not above: it needs an extra.

        if settings.database.url is None and (url := running_postgres(data_dir)):
            found["database"] = settings.database.model_copy(update={"url": SecretStr(url)})
        if settings.broker.url is None and (url := running_broker(data_dir)):
            found["broker"] = settings.broker.model_copy(update={"url": SecretStr(url)})
    return settings.model_copy(update=found)


@contextmanager
def connected(settings: DatabaseSettings, role: str) -> Iterator[Engine]:
    """A database whose schema is up to date. Raises Unavailable."""
    engine = sync_engine(settings, role=role, pool_size=1)
    try:
        with outages_named(at=database_url(settings)):
            with engine.connect() as connection:
                usable = queries.schema_is_usable(queries.schema_revision(connection))
            if not usable:
                raise Unavailable("The database's schema is not up to date. Run `taskyard db upgrade` first.")
            yield engine
    finally:
        engine.dispose()


def _migrate(url: str) -> None:
    """By command: the migrations are another room's."""
    done = subprocess.run(  # noqa: S603  # our own command, and no shell
        python("-m", "taskyard", "db", "upgrade"), env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unavailable(f"The migrations failed: {done.stderr.strip()[-2000:]}")
