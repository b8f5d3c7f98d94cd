"""Which queues workers have served, so that the broker's queues can be deleted once nobody needs them. Only adds; the version before deletes none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.create_table(
        "broker_queues",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("unused_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_broker_queues")),
    )


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_table("broker_queues")
