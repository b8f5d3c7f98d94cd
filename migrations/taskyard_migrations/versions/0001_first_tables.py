"""The first tables: tasks and their events, workers, queues, routes and deliveries.

What each is for, and why the indexes are these, is told in taskyard.tables; a migration only repeats how it once was.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Up to this revision."""
    _create_tasks()
    _index_tasks()
    _create_events()
    _create_workers()
    _create_queues()
    _create_routes()
    _create_deliveries()


def downgrade() -> None:
    """Back to an empty schema."""
    for table in ("deliveries", "routes", "queues", "workers", "events", "tasks"):
        op.drop_table(table)


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        sa.Column("result", JSONB()),
        sa.Column("error", JSONB()),
        sa.Column("progress", JSONB()),
        sa.Column("tags", ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("metadata", JSONB(), server_default="{}", nullable=False),
        sa.Column("unique_key", sa.Text()),
        sa.Column("parent_id", sa.Uuid()),
        sa.Column("timeout", sa.Double(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lost", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("run_at", sa.DateTime(timezone=True)),
        sa.Column("next_run_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True)),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("in_line", sa.Boolean(), sa.Computed("status IN ('pending', 'queued', 'running') AND next_run_at IS NULL", persisted=True)),
        sa.Column("ended", sa.Text(), sa.Computed("CASE WHEN status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN status END", persisted=True)),
        sa.CheckConstraint("(status IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)", name=op.f("ck_tasks_finished")),
        sa.CheckConstraint("lane IN ('sync', 'async')", name=op.f("ck_tasks_lane")),
        sa.CheckConstraint("status <> 'running' OR (worker_id IS NOT NULL AND started_at IS NOT NULL AND fence > 0)", name=op.f("ck_tasks_running")),
        sa.CheckConstraint("status <> 'scheduled' OR next_run_at IS NOT NULL", name=op.f("ck_tasks_scheduled")),
        sa.CheckConstraint(
            "status IN ('scheduled', 'pending', 'queued', 'running', 'held', 'succeeded', 'failed', 'cancelled', 'expired')", name=op.f("ck_tasks_status")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_tasks_priority")),
        sa.CheckConstraint("timeout > 0 AND max_attempts > 0 AND attempt >= 0 AND fence >= attempt AND lost >= 0", name=op.f("ck_tasks_counts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        postgresql_with={"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.02"},
    )


def _index_tasks() -> None:
    op.create_index("ix_tasks_due", "tasks", ["next_run_at"], postgresql_where=sa.text("next_run_at IS NOT NULL"))
    op.create_index("ix_tasks_ended", "tasks", ["namespace", "ended", "id"], postgresql_where=sa.text("ended IS NOT NULL"))
    op.create_index("ix_tasks_expiry", "tasks", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL AND ended IS NULL"))
    op.create_index("ix_tasks_held", "tasks", ["namespace", "id"], postgresql_where=sa.text("NOT in_line AND ended IS NULL AND next_run_at IS NULL"))
    op.create_index("ix_tasks_line", "tasks", ["queue", "lane", sa.text("priority DESC"), "id"], postgresql_where=sa.text("in_line"))
    op.create_index("ix_tasks_live", "tasks", ["namespace", "id"], postgresql_where=sa.text("ended IS NULL"))
    op.create_index("ix_tasks_newest", "tasks", ["namespace", "id"])
    op.create_index("ix_tasks_tags", "tasks", ["tags"], postgresql_using="gin")
    op.create_index("ix_tasks_type", "tasks", ["namespace", "type", "id"])
    op.create_index(
        "uq_tasks_unique_key", "tasks", ["namespace", "unique_key"], unique=True, postgresql_where=sa.text("unique_key IS NOT NULL AND ended IS NULL")
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("data", JSONB(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_task_id", "events", ["task_id", "id"])


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("queues", ARRAY(sa.Text()), nullable=False),
        sa.Column("slots", JSONB(), server_default="{}", nullable=False),
        sa.Column("pace", JSONB(), server_default="{}", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def _create_queues() -> None:
    op.create_table(
        "queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_queues")),
    )


def _create_routes() -> None:
    op.create_table(
        "routes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("notifier", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text()), nullable=False),
        sa.Column("type_pattern", sa.Text()),
        sa.Column("queues", ARRAY(sa.Text())),
        sa.Column("tags", ARRAY(sa.Text())),
        sa.Column("min_priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_routes")),
    )


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("notifier", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tries", JSONB(), server_default="[]", nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), server_default=sa.text("now()")),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("(status = 'delivered') = (delivered_at IS NOT NULL)", name=op.f("ck_deliveries_delivered")),
        sa.CheckConstraint("(status IN ('delivered', 'dead')) = (next_try_at IS NULL)", name=op.f("ck_deliveries_open")),
        sa.CheckConstraint("status IN ('pending', 'queued', 'sending', 'delivered', 'dead')", name=op.f("ck_deliveries_status")),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_deliveries_event_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["next_try_at"], postgresql_where=sa.text("next_try_at IS NOT NULL"))
    op.create_index("ix_deliveries_event_id", "deliveries", ["event_id"])
    op.create_index("ix_deliveries_newest", "deliveries", ["namespace", "id"])
    op.create_index("ix_deliveries_task_id", "deliveries", ["task_id"])
