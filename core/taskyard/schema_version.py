"""Which revision the migrations brought a database to.

It is kept in a version table of our own: ``alembic_version`` belongs to whichever Alembic project comes first. Early versions of Taskyard
kept theirs in that one, so it counts where our own table has nothing, our tables are there, and the revision looks like ours.
"""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import Connection, text

TABLE: Final = "taskyard_alembic_version"
SHARED_TABLE: Final = "alembic_version"

#: Columns of the first migration's tables that no other project's tables of these names have together.
_OURS = """
SELECT count(*) FROM pg_attribute
WHERE NOT attisdropped AND (attrelid, attname) IN (
    (to_regclass('tasks'), 'fence'), (to_regclass('tasks'), 'in_line'), (to_regclass('tasks'), 'lane'), (to_regclass('events'), 'task_id'),
    (to_regclass('deliveries'), 'route'), (to_regclass('workers'), 'beat_at'), (to_regclass('queues'), 'name'), (to_regclass('routes'), 'name')
)
"""
_OUR_COLUMNS = 8


def revision(connection: Connection) -> str | None:
    """The revision that this database is at; None if it has no schema of ours."""
    return own_revision(connection) or shared_revision(connection)


def own_revision(connection: Connection) -> str | None:
    """The revision in our own version table. What stands in ``alembic_version`` beside it is another project's."""
    return max(_versions(connection, TABLE), default=None)


def shared_revision(connection: Connection) -> str | None:
    """The revision of ours that an early version of Taskyard left in ``alembic_version``; None if whatever is there is another project's."""
    found = [version for version in _versions(connection, SHARED_TABLE) if re.fullmatch(r"\d{4}", version)]
    return max(found) if found and connection.execute(text(_OURS)).scalar() == _OUR_COLUMNS else None


def _versions(connection: Connection, table: str) -> list[str]:
    if connection.execute(text("SELECT to_regclass(:table)"), {"table": table}).scalar() is None:
        return []
    return [str(version) for version in connection.execute(text(f"SELECT version_num FROM {table}")).scalars()]  # a constant
