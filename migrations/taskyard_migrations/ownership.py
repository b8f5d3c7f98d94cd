"""Before the first statement of a migration: which revision is the database at, and is every name that we need free or ours?"""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import Connection, text

from taskyard.errors import ConfigurationError
from taskyard.schema_version import SHARED_TABLE, TABLE, own_revision, shared_revision
from taskyard.tables import metadata

log = structlog.get_logger(__name__)

#: What stands in ``alembic_version`` where our revision was. A process of the version before takes it for a later revision than its own, so
#: it goes on working; another project's Alembic says that it knows no such revision, where ours could pass for one of its own.
MOVED: Final = "taskyard_has_its_own_table"

_TAKEN = """
SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relname = ANY(:names) ORDER BY relname
"""


def take_over(connection: Connection) -> None:
    """Move the revision of an early version of Taskyard from ``alembic_version`` to our own table.

    Another project's revision is left alone.

    Raises:
        ConfigurationError: the database has no schema of ours, and others' tables have the names of ours.
    """
    if own_revision(connection) is not None:
        return
    ours = shared_revision(connection)
    if ours is None:
        _refuse_foreign_tables(connection)
        return
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {TABLE} (version_num varchar(32) NOT NULL, CONSTRAINT {TABLE}_pkc PRIMARY KEY (version_num))"))
    connection.execute(text(f"INSERT INTO {TABLE} VALUES (:ours)"), {"ours": ours})  # constants
    connection.execute(text(f"UPDATE {SHARED_TABLE} SET version_num = :moved WHERE version_num = :ours"), {"moved": MOVED, "ours": ours})
    log.info("schema.version_moved", revision=ours, to=TABLE, do=f"drop {SHARED_TABLE} once no process of the version before runs")


def _refuse_foreign_tables(connection: Connection) -> None:
    names = [*metadata.tables, *(str(index.name) for table in metadata.tables.values() for index in table.indexes)]
    taken = connection.execute(text(_TAKEN), {"names": names}).scalars().all()
    if taken:
        shown = ", ".join(taken[:5]) + (f" and {len(taken) - 5} more" if len(taken) > 5 else "")
        raise ConfigurationError(
            f"This database has {shown} already, and not from Taskyard's migrations: nothing was made. "
            "Give Taskyard a database of its own, or a schema of its own: CREATE SCHEMA taskyard, and DATABASE_URL with ?options=-csearch_path%3Dtaskyard."
        )
