"""Counters: what all processes have counted, for ``GET /metrics``. Only adds; the version before works on it as on its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", ARRAY(sa.Text()), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_counters")),
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    """Back to the revision before. The counts are gone."""
    op.drop_table("counters")
