"""Alembic's way in: from the repository root (`alembic upgrade head`) and from `taskyard db`, on one path.

A migration never makes a busy installation wait for long: a lock that it can't have in ``lock_timeout`` makes it fail, and it
can be tried again. Other limits by `-x`, with PostgreSQL's units and 0 for none:
``alembic -x lock_timeout=1min -x statement_timeout=0 upgrade head``.
"""

from __future__ import annotations

import re
import time
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import URL, Connection, text

from taskyard.database import database_url
from taskyard.errors import ConfigurationError
from taskyard.schema_version import TABLE
from taskyard.settings import load_settings
from taskyard.tables import metadata
from taskyard_migrations.comparison import PLUGINS
from taskyard_migrations.limits import LOCK_TIMEOUT, STATEMENT_TIMEOUT, UPGRADE_LOCK
from taskyard_migrations.ownership import take_over
from taskyard_migrations.runner import migration_engine, next_id

#: Seconds between two looks whether another upgrader is done.
ASK_AGAIN = 0.1


def _configure(**where: Any) -> None:
    context.configure(
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
        autogenerate_plugins=PLUGINS,
        process_revision_directives=_number,
        include_object=_is_ours,
        version_table=TABLE,
        **where,
    )


def _number(_context: MigrationContext, _revision: Any, directives: list[MigrationScript]) -> None:
    """Revisions are compared in order, as text: Alembic's own ids are random, so a new file gets the next number."""
    for directive in directives:
        if not re.fullmatch(r"\d{4}", directive.rev_id or ""):
            directive.rev_id = next_id()


def _is_ours(_object: Any, _name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Is this for autogenerate to look at? Tables that only the database has are other projects'."""
    return not (kind == "table" and reflected and counterpart is None)


def _url() -> URL:
    given = context.config.attributes.get("url")
    if isinstance(given, URL):
        return given
    try:
        return database_url(load_settings().database)
    except ConfigurationError as error:
        # Alembic's command prints the sentence of its own error, and the traceback of any other.
        raise CommandError(str(error)) from error


def _limits() -> dict[str, str]:
    chosen = context.get_x_argument(as_dictionary=True)
    defaults = {"lock_timeout": LOCK_TIMEOUT, "statement_timeout": STATEMENT_TIMEOUT}
    return {name: chosen.get(name, default) for name, default in defaults.items()}


def _migrate(connection: Connection) -> None:
    # Held by the session and not by the transaction, so that a migration may commit midway (CREATE INDEX CONCURRENTLY).
    # Two upgraders wait for each other, however long: no limit yet. Not within a statement, for whose snapshot the other one's CREATE INDEX
    # CONCURRENTLY would wait in turn: a deadlock.
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": UPGRADE_LOCK}).scalar():
        connection.rollback()
        time.sleep(ASK_AGAIN)
    for name, value in _limits().items():
        connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
    connection.commit()
    try:
        take_over(connection)
    except ConfigurationError as error:
        # As in _url.
        raise CommandError(str(error)) from error
    connection.commit()
    _configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run on the database of the caller, or else of the settings."""
    engine = migration_engine(_url())
    with engine.connect() as connection:
        _migrate(connection)


def run_offline() -> None:
    """Print the SQL (`--sql`)."""
    _configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        for name, value in _limits().items():
            context.execute(f"SET LOCAL {name} = '{value}'")
        context.run_migrations()


if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    run_offline()
else:
    run_online()
