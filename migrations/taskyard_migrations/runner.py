"""Migrations by function call: what `taskyard up`, `taskyard db` and the tests use."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from taskyard import sessions
from taskyard.database import APPLICATION, database_url
from taskyard.database_check import check_encoding
from taskyard.schema_version import revision as revision_of
from taskyard.settings import DatabaseSettings
from taskyard_migrations.limits import LOCK_TIMEOUT, STATEMENT_TIMEOUT

log = structlog.get_logger(__name__)

#: Seconds in which a session must be set up.
SESSION_TIMEOUT = 10.0

#: By the names of their connections.
_ROLES = {f"{APPLICATION}-worker": "workers", f"{APPLICATION}-dispatcher": "dispatchers", f"{APPLICATION}-api": "web processes"}

FOLDER = Path(__file__).parent


def config(url: str | None = None, *, lock_timeout: str = LOCK_TIMEOUT, statement_timeout: str = STATEMENT_TIMEOUT) -> Config:
    """Alembic's configuration for the versions in this package, without a file.

    The timeouts are in PostgreSQL's form (``5s``, ``0`` for none). Without ``url`` the settings' database is used.

    Raises:
        ConfigurationError: the URL is not one of PostgreSQL.
    """
    made = Config(cmd_opts=Namespace(x=[f"lock_timeout={lock_timeout}", f"statement_timeout={statement_timeout}"]))
    # Alembic reads it with configparser, where a % means something.
    made.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    if url is not None:
        # As an attribute, never as an option: a URL may well have a %.
        made.attributes["url"] = shown(url)
    return made


def shown(url: str) -> URL:
    """A database's URL as SQLAlchemy reads it. Raises ConfigurationError."""
    return database_url(DatabaseSettings(url=SecretStr(url)))


def upgrade(url: str, revision: str = "head", *, lock_timeout: str = LOCK_TIMEOUT, statement_timeout: str = STATEMENT_TIMEOUT) -> None:
    """Bring the database up to a revision. Waits for another upgrader that is at it.

    A schema that a later version has brought further than our newest revision is left as it is: this version works on it.
    """
    with migration_engine(shown(url)).connect() as connection:
        check_encoding(connection)
        at = revision_of(connection)
    if revision == "head" and is_newer(at):
        log.warning("schema.newer", at=at, newest_here=head())
        return
    command.upgrade(config(url, lock_timeout=lock_timeout, statement_timeout=statement_timeout), revision)


def downgrade(url: str, revision: str, *, lock_timeout: str = LOCK_TIMEOUT, statement_timeout: str = STATEMENT_TIMEOUT) -> None:
    """Take the database back to a revision; ``base`` is before the first. Data in what is dropped is gone."""
    command.downgrade(config(url, lock_timeout=lock_timeout, statement_timeout=statement_timeout), revision)


def current(url: str) -> str | None:
    """The revision that the database is at; None when it has no schema of ours."""
    with migration_engine(shown(url)).connect() as connection:
        return revision_of(connection)


def migration_engine(url: URL) -> Engine:
    """An engine whose sessions have what a migration needs. It keeps no connection."""
    engine = create_engine(url.update_query_dict({"application_name": f"{APPLICATION}-migrations"}), poolclass=NullPool)
    sessions.set_up(engine, sessions.of_migrations(), SESSION_TIMEOUT)
    return engine


def connected_roles(url: str) -> list[str]:
    """The roles that are connected to the database now, such as ``workers``."""
    with migration_engine(shown(url)).connect() as connection:
        names = connection.execute(text("SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()")).scalars().all()
    return [role for name, role in _ROLES.items() if name in names]


def head() -> str:
    """The newest revision that this package has."""
    found = ScriptDirectory.from_config(config()).get_current_head()
    assert found is not None, "the versions folder has no revision"
    return found


def is_newer(revision: str | None) -> bool:
    """Is a database's revision one of a later version than this?"""
    return revision is not None and revision > head()


def next_id() -> str:
    """The id for the revision after the newest. Ids are ordered: 0001, 0002, ..."""
    return f"{int(head()) + 1:04d}"
