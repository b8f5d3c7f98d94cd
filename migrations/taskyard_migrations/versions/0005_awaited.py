"""Whether somebody waits for a task's end. Only adds; the version before goes on and tells nobody, whose waits then last as long as asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.add_column("tasks", sa.Column("awaited", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_column("tasks", "awaited")
