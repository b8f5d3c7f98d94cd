"""What a worker says of its progress: when it last claimed a task or recorded an end, how many slots are taken, and where it runs.

Only adds. A worker of the version before leaves them empty, and nobody calls it stuck.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.add_column("workers", sa.Column("host", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("busy", JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("workers", sa.Column("progressed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Back to the revision before."""
    for column in ("progressed_at", "busy", "host"):
        op.drop_column("workers", column)
