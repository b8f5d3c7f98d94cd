"""The audit says where a change came from; secrets that all processes of an installation share.

Only adds. Processes of the version before write audit entries without an address.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("audit", sa.Column("address", sa.Text(), nullable=True))
    op.create_table(
        "installation_secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_installation_secrets")),
    )


def downgrade() -> None:
    """Back to the revision before. A new secret is made at the next upgrade: event ids that clients keep are unknown then."""
    op.drop_table("installation_secrets")
    op.drop_column("audit", "address")
