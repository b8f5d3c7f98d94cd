"""Digests, rates, system events, routes that switch themselves off, order within a task, and a submission's own subscriptions.

Only adds. While the version before still runs, what it ends is told by the routes it knows: its statements fold nothing into digests, see no
namespaces of a route, and tell no subscription.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

OF_ROUTES: dict[str, Any] = {
    "namespaces": ARRAY(sa.Text()),
    "every": sa.Double(),
    "first": sa.Integer(),
    "gap": sa.Double(),
    "fingerprint": sa.Text(),
    "disabled_reason": sa.Text(),
    "free_at": sa.DateTime(timezone=True),
    "digested_at": sa.DateTime(timezone=True),
    "disabled_at": sa.DateTime(timezone=True),
}


def upgrade() -> None:
    """Up to this revision."""
    op.create_table(
        "conditions",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("data", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("kind", "subject", name=op.f("pk_conditions")),
    )
    op.create_table(
        "digest_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("time", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_digest_items")),
    )
    op.create_table(
        "subscriptions",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.SmallInteger(), nullable=False),
        sa.Column("notifier", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text()), nullable=False),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("task_id", "n", name=op.f("pk_subscriptions")),
    )
    op.add_column("tasks", sa.Column("subscribed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    for name, kind in OF_ROUTES.items():
        op.add_column("routes", sa.Column(name, kind, nullable=True))
    op.execute("ALTER TABLE deliveries ADD COLUMN IF NOT EXISTS slot_at TIMESTAMP WITH TIME ZONE")
    with op.get_context().autocommit_block():
        op.create_index(op.f("ix_digest_items_route"), "digest_items", ["route", "id"], postgresql_concurrently=True, if_not_exists=True)
        op.create_index(
            op.f("ix_deliveries_order"),
            "deliveries",
            ["task_id", "route", "id"],
            postgresql_where=sa.text("next_try_at IS NOT NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def downgrade() -> None:
    """Back to the revision before. What waited for a digest, and all subscriptions, are gone."""
    op.drop_index(op.f("ix_deliveries_order"), table_name="deliveries")
    op.drop_column("deliveries", "slot_at")
    for name in OF_ROUTES:
        op.drop_column("routes", name)
    op.drop_column("tasks", "subscribed")
    for table in ("subscriptions", "digest_items", "conditions"):
        op.drop_table(table)
