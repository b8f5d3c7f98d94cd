"""${message}

Revision: ${up_revision}, after ${down_revision | comma,n}. Made ${create_date}.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
# `contract = True` where it takes away, or refuses what was right before: see docs/migrations.md.


def upgrade() -> None:
    """Up to this revision."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Back to the one before."""
    ${downgrades if downgrades else "pass"}
