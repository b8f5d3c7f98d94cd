"""Which plugin brought each task type, so that a service can tell a type of a plugin that is broken now from one that never was. Only adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.create_table(
        "known_task_types",
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("plugin", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("type", name=op.f("pk_known_task_types")),
    )


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_table("known_task_types")
