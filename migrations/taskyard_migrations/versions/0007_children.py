"""An index of tasks by the one whose handler submitted them. Only adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_tasks_parent",
            "tasks",
            ["parent_id", "id"],
            postgresql_where=sa.text("parent_id IS NOT NULL"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_index("ix_tasks_parent", "tasks")
