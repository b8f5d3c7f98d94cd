"""Deliveries by each filter of their list. Only adds; what the version before writes meanwhile lacks its event's type, and is left out
where deliveries are asked for by that.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BATCH = 5000
INDEXES = {
    "ix_deliveries_ended": (["namespace", "status", "id"], "next_try_at IS NULL"),
    "ix_deliveries_open": (["namespace", "id"], "next_try_at IS NOT NULL"),
    "ix_deliveries_route": (["namespace", "route", "id"], None),
    "ix_deliveries_notifier": (["namespace", "notifier", "id"], None),
    "ix_deliveries_event": (["namespace", "event", "id"], None),
    "ix_deliveries_created_at": (["namespace", "created_at"], None),
}


def upgrade() -> None:
    """Up to this revision."""
    op.execute("ALTER TABLE deliveries ADD COLUMN IF NOT EXISTS event TEXT")
    with op.get_context().autocommit_block():
        _fill()
        for name, (columns, where) in INDEXES.items():
            op.create_index(op.f(name), "deliveries", columns, postgresql_where=where and sa.text(where), postgresql_concurrently=True, if_not_exists=True)


def _fill() -> None:
    """Event types of the deliveries that are there, some at a time: each commit locks few of them, and not for long."""
    if op.get_context().as_sql:
        op.execute("UPDATE deliveries d SET event = e.type FROM events e WHERE e.id = d.event_id AND d.event IS NULL")
        return
    fill = sa.text("UPDATE deliveries d SET event = e.type FROM events e WHERE e.id = d.event_id AND d.event IS NULL AND d.id > :after AND d.id <= :upto")
    after, last = 0, op.get_bind().execute(sa.text("SELECT COALESCE(max(id), 0) FROM deliveries")).scalar_one()
    while after < last:
        op.get_bind().execute(fill, {"after": after, "upto": after + BATCH})
        after += BATCH


def downgrade() -> None:
    """Back to the revision before."""
    for name in INDEXES:
        op.drop_index(op.f(name), table_name="deliveries")
    op.drop_column("deliveries", "event")
