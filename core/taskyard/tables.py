"""The tables, and the invariants that Postgres holds for us.

Indexes are few on purpose: no index key or predicate changes its value while a live task moves, so those moves stay
heap-only updates (see docs/decisions/ and the test on ``n_tup_hot_upd``). That is what ``in_line`` and ``ended`` are for:
both are generated from the status, and both keep one value from pending through queued to running.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from taskyard.statuses import LIVE as LIVE
from taskyard.statuses import TERMINAL as TERMINAL

#: The migration that brought the tables to this shape; a test compares it with the newest one. Revision ids are ordered.
SCHEMA_REVISION = "0015"

IN_LINE = ("pending", "queued", "running")
DELIVERY_STATUSES = ("pending", "queued", "sending", "delivered", "dead")


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _time(name: str, **options: Any) -> Column[Any]:
    return Column(name, DateTime(timezone=True), **options)


tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("namespace", Text, nullable=False, server_default="default"),
    Column("type", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("result", JSONB),
    Column("error", JSONB),
    Column("progress", JSONB),
    Column("tags", ARRAY(Text), nullable=False, server_default="{}"),
    Column("metadata", JSONB, nullable=False, server_default="{}"),
    Column("unique_key", Text),
    Column("parent_id", Uuid),
    Column("timeout", Double, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("lost", Integer, nullable=False, server_default="0"),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("worker_id", Uuid),
    # Somebody waits for its end: only then is that worth a NOTIFY. Set in the row that a finish must lock, so neither misses the other.
    Column("awaited", Boolean, nullable=False, server_default="false"),
    # It has subscriptions: nobody looks for those of any other task.
    Column("subscribed", Boolean, nullable=False, server_default="false"),
    _time("run_at"),
    _time("next_run_at"),
    _time("expires_at"),
    _time("cancel_requested_at"),
    _time("created_at", nullable=False, server_default=func.now()),
    _time("updated_at", nullable=False, server_default=func.now()),
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at"),
    # A parked or retried task leaves the line until it is due, so that the dispatcher never reads past a crowd of sleepers.
    Column("in_line", Boolean, Computed(f"status IN ({_listed(IN_LINE)}) AND next_run_at IS NULL", persisted=True)),
    Column("ended", Text, Computed(f"CASE WHEN status IN ({_listed(TERMINAL)}) THEN status END", persisted=True)),
    CheckConstraint(f"status IN ({_listed(LIVE + TERMINAL)})", name="status"),
    CheckConstraint(f"(status IN ({_listed(TERMINAL)})) = (finished_at IS NOT NULL)", name="finished"),
    CheckConstraint("status <> 'scheduled' OR next_run_at IS NOT NULL", name="scheduled"),
    CheckConstraint("status <> 'running' OR (worker_id IS NOT NULL AND started_at IS NOT NULL AND fence > 0)", name="running"),
    CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    CheckConstraint("lane IN ('sync', 'async')", name="lane"),
    CheckConstraint("timeout > 0 AND max_attempts > 0 AND attempt >= 0 AND fence >= attempt AND lost >= 0", name="counts"),
    Index("ix_tasks_line", "queue", "lane", text("priority DESC"), "id", postgresql_where=text("in_line")),
    Index("ix_tasks_due", "next_run_at", postgresql_where=text("next_run_at IS NOT NULL")),
    Index("ix_tasks_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND ended IS NULL")),
    Index("uq_tasks_unique_key", "namespace", "unique_key", unique=True, postgresql_where=text("unique_key IS NOT NULL AND ended IS NULL")),
    Index("ix_tasks_newest", "namespace", "id"),
    Index("ix_tasks_type", "namespace", "type", "id"),
    Index("ix_tasks_ended", "namespace", "ended", "id", postgresql_where=text("ended IS NOT NULL")),
    Index("ix_tasks_live", "namespace", "id", postgresql_where=text("ended IS NULL")),
    # Exactly the held tasks: every other live one is in line or has a next_run_at.
    Index("ix_tasks_held", "namespace", "id", postgresql_where=text("NOT in_line AND ended IS NULL AND next_run_at IS NULL")),
    # Only children have an entry, which no move of theirs ever changes.
    Index("ix_tasks_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("ix_tasks_tags", "tags", postgresql_using="gin"),
    postgresql_with={"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.02"},
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # No foreign key: its check would cost a look-up and a row lock for each of a task's events. The verbs write an event only
    # in the statement that moved the task.
    Column("task_id", Uuid, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("type", Text, nullable=False),
    _time("time", nullable=False, server_default=func.clock_timestamp()),
    Column("attempt", Integer, nullable=False),
    Column("data", JSONB, nullable=False, server_default="{}"),
    Index("ix_events_task_id", "task_id", "id"),
)

# What handlers said. The only index is that of its key, and ids grow: lines of one task are written side by side.
task_logs = Table(
    "task_logs",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    # From the events' sequence.
    Column("id", BigInteger, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    _time("time", nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("fields", JSONB, nullable=False),
    Column("bytes", Integer, nullable=False),
)

# A task has a row here once its handler has said something. It is updated with every few lines: room in each page keeps that heap-only.
task_log_totals = Table(
    "task_log_totals",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    postgresql_with={"fillfactor": "50"},
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", JSONB, nullable=False, server_default="{}"),
    # Seconds that a task of each type took lately: what the dispatcher packs messages by.
    Column("pace", JSONB, nullable=False, server_default="{}"),
    # Null in rows that the version before has written.
    Column("host", Text),
    # Slots that runs have taken, by lane.
    Column("busy", JSONB, nullable=False, server_default="{}"),
    # Its last claim or recorded end.
    _time("progressed_at"),
    _time("started_at", nullable=False, server_default=func.now()),
    _time("beat_at", nullable=False, server_default=func.now()),
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("host", Text, nullable=False),
    # Why it can't reach the broker, if it can't.
    Column("broker_error", Text),
    _time("started_at", nullable=False, server_default=func.now()),
    _time("beat_at", nullable=False, server_default=func.now()),
)

queues = Table(
    "queues",
    metadata,
    Column("name", Text, primary_key=True),
    _time("paused_at"),
    _time("created_at", nullable=False, server_default=func.now()),
)

# Queues that a worker has served, and which the broker therefore has; and since when no worker serves them and no task is in line.
broker_queues = Table(
    "broker_queues",
    metadata,
    Column("queue", Text, primary_key=True),
    _time("unused_since"),
)

# Which plugin brought each task type when it last worked. See known_types.py.
known_task_types = Table(
    "known_task_types",
    metadata,
    Column("type", Text, primary_key=True),
    Column("plugin", Text, nullable=False),
)

routes = Table(
    "routes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("notifier", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    Column("type_pattern", Text),
    Column("queues", ARRAY(Text)),
    Column("tags", ARRAY(Text)),
    Column("min_priority", SmallInteger, nullable=False, server_default="0"),
    Column("namespaces", ARRAY(Text)),
    # Seconds between two digests, and how many events one shows: of a route that has them.
    Column("every", Double),
    Column("first", Integer),
    # Seconds between two deliveries, where the route has a rate.
    Column("gap", Double),
    # Of its configuration: a route that was switched off is on again when that has changed.
    Column("fingerprint", Text),
    Column("disabled_reason", Text),
    _time("free_at"),
    _time("digested_at"),
    _time("disabled_at"),
)

# Events that wait for a route's next digest. No foreign key: they are counted even if their task is gone by then.
digest_items = Table(
    "digest_items",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("route", Text, nullable=False),
    Column("event_id", BigInteger, nullable=False),
    Column("event", Text, nullable=False),
    Column("type", Text),
    _time("time", nullable=False, server_default=func.now()),
    Index("ix_digest_items_route", "route", "id"),
)

# What is wrong now (a queue is stalled, a plugin has failed), so that it is told once and not again and again.
conditions = Table(
    "conditions",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("data", JSONB, nullable=False, server_default="{}"),
    _time("since", nullable=False, server_default=func.now()),
    _time("told_at"),
)

# Who wants to be told of one task, as its submission said. No foreign key: they go with their task (see retention.py).
subscriptions = Table(
    "subscriptions",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("n", SmallInteger, primary_key=True),
    Column("notifier", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    Column("options", JSONB, nullable=False),
    _time("ended_at"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", BigInteger, ForeignKey("events.id", ondelete="CASCADE"), nullable=False),
    Column("namespace", Text, nullable=False),
    Column("task_id", Uuid, nullable=False),
    Column("route", Text, nullable=False),
    Column("notifier", Text, nullable=False),
    # Its event's type, for lists by index. Null in rows that the version before has written.
    Column("event", Text),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("tries", JSONB, nullable=False, server_default="[]"),
    _time("next_try_at", server_default=func.now()),
    # When a route with a rate lets it go.
    _time("slot_at"),
    _time("created_at", nullable=False, server_default=func.now()),
    _time("updated_at", nullable=False, server_default=func.now()),
    _time("delivered_at"),
    CheckConstraint(f"status IN ({_listed(DELIVERY_STATUSES)})", name="status"),
    CheckConstraint("(status = 'delivered') = (delivered_at IS NOT NULL)", name="delivered"),
    CheckConstraint("(status IN ('delivered', 'dead')) = (next_try_at IS NULL)", name="open"),
    Index("ix_deliveries_due", "next_try_at", postgresql_where=text("next_try_at IS NOT NULL")),
    Index("ix_deliveries_event_id", "event_id"),
    Index("ix_deliveries_newest", "namespace", "id"),
    Index("ix_deliveries_task_id", "task_id"),
    # One for each filter of a list, newest first: so that a page of few among many costs no more than any other.
    Index("ix_deliveries_ended", "namespace", "status", "id", postgresql_where=text("next_try_at IS NULL")),
    Index("ix_deliveries_open", "namespace", "id", postgresql_where=text("next_try_at IS NOT NULL")),
    Index("ix_deliveries_order", "task_id", "route", "id", postgresql_where=text("next_try_at IS NOT NULL")),
    Index("ix_deliveries_route", "namespace", "route", "id"),
    Index("ix_deliveries_notifier", "namespace", "notifier", "id"),
    Index("ix_deliveries_event", "namespace", "event", "id"),
    Index("ix_deliveries_created_at", "namespace", "created_at"),
)

# A table of its own: no move of a task touches it.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("task_ids", ARRAY(Uuid), nullable=False),
    _time("created_at", nullable=False, server_default=func.now()),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

# Until when a namespace with a quota is busy with what it submitted (see quotas.py). What a crash takes is a second's worth: no WAL is spent on it.
submission_rates = Table(
    "submission_rates",
    metadata,
    Column("namespace", Text, primary_key=True),
    _time("busy_until", nullable=False),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

# What the processes have counted since ever (see metrics.py). A histogram has a row for each bucket, not cumulated, and one for
# its sum. The same few rows are updated again and again: room in each page keeps that heap-only.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("labels", ARRAY(Text), primary_key=True),
    Column("value", Double, nullable=False),
    postgresql_with={"fillfactor": "50"},
)

# Access keys. A rotated key has its successor's name for a while, so that names are unique by lock and not by index: see keys.py.
keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("hash", LargeBinary, nullable=False),
    _time("created_at", nullable=False, server_default=func.now()),
    _time("expires_at"),
    _time("last_used_at"),
    _time("revoked_at"),
    CheckConstraint("octet_length(hash) = 32", name="hash"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _time("time", nullable=False, server_default=func.now()),
    Column("key_id", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("target", Text, nullable=False),
    # Where it came from. Null in rows that the version before has written.
    Column("address", Text),
)

# Secrets that all processes of an installation share: see ids.py. Whoever needs one first makes it.
installation_secrets = Table(
    "installation_secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
