"""Until when a namespace with a quota is busy with what it submitted. Only adds; the version before knows no quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    op.create_table(
        "submission_rates",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("busy_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name=op.f("pk_submission_rates")),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    """Back to the revision before."""
    op.drop_table("submission_rates")
