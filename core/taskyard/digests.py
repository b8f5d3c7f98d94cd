"""Digests: what a route with ``every`` wants waits in a table, and goes out as one event with counts and the first few.

The first message goes out at once, and the next ones ``every`` seconds apart, with all that came meanwhile. The row of what waits is
written by the statement that moved the task, so no event is left out and none is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from taskyard import ids
from taskyard.events import DIGEST, NAMESPACE, NO_TASK
from taskyard.feed import event_of
from taskyard.ids import PLAIN, PublicIds
from taskyard.storable import to_json

#: Events that one digest takes at most; more of them wait for the next one. Bounds the statement, not the counts.
LIMIT = 200_000
#: Pairs of event and task type that a digest counts by themselves; the others are counted together.
MAX_COUNTS = 50

_WAITING = text("SELECT EXISTS (SELECT FROM digest_items)")
# A route's row is locked while it is folded: of several dispatchers one does it.
_DUE = text(
    """
SELECT name, notifier, COALESCE(first, 0) AS first FROM routes r
WHERE (every IS NULL OR digested_at IS NULL OR digested_at + every * interval '1 second' <= now())
  AND EXISTS (SELECT FROM digest_items i WHERE i.route = r.name) AND disabled_at IS NULL
ORDER BY name FOR UPDATE SKIP LOCKED"""
)
_FIRST = text("SELECT event_id FROM digest_items WHERE route = :route ORDER BY id LIMIT :first")
_FOLD = text(
    """
WITH gone AS (
  DELETE FROM digest_items WHERE id IN (SELECT id FROM digest_items WHERE route = :route ORDER BY id LIMIT :limit) RETURNING event, type, time
)
SELECT event, type, count(*) AS count, min(time) AS since, max(time) AS until FROM gone GROUP BY event, type ORDER BY count(*) DESC, event, type"""
)
_SHOWN = text(
    """
SELECT e.id, e.task_id, e.namespace, e.type AS event, e.time, e.attempt, e.data, COALESCE(t.type, '') AS type, COALESCE(t.queue, '') AS queue,
  COALESCE(t.priority, 0) AS priority, COALESCE(t.tags, '{}') AS tags, COALESCE(t.status, '') AS status
FROM events e LEFT JOIN tasks t ON t.id = e.task_id WHERE e.id = ANY (CAST(:ids AS bigint[])) ORDER BY e.id"""
)
_SEND = text(
    f"""
WITH told AS (
  INSERT INTO events (task_id, namespace, type, attempt, data) VALUES ('{NO_TASK}', '{NAMESPACE}', '{DIGEST}', 0, CAST(:data AS jsonb)) RETURNING id
), marked AS (
  UPDATE routes SET digested_at = now() WHERE name = :route
)
INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event)
SELECT id, '{NAMESPACE}', '{NO_TASK}', :route, :notifier, '{DIGEST}' FROM told"""
)


def fold(connection: Connection) -> dict[str, int]:
    """Make a digest for each route whose time has come: how many events it has, by route."""
    made: dict[str, int] = {}
    if not connection.execute(_WAITING).scalar():
        return made
    # Before a route's row: whoever makes the configured routes known locks the table first, and then rows.
    connection.execute(text("LOCK TABLE routes IN ROW EXCLUSIVE MODE"))
    for route in connection.execute(_DUE).all():
        first = list(connection.execute(_FIRST, {"route": route.name, "first": route.first}).scalars())
        counts = connection.execute(_FOLD, {"route": route.name, "limit": LIMIT}).mappings().all()
        shown = connection.execute(_SHOWN, {"ids": first}).mappings().all() if first else []
        data = content(route.name, counts, shown, ids.of(connection))
        connection.execute(_SEND, {"route": route.name, "notifier": route.notifier, "data": to_json(data)})
        made[route.name] = data["count"]
    return made


def content(route: str, counts: Sequence[RowMapping], shown: Sequence[RowMapping], public: PublicIds = PLAIN) -> dict[str, Any]:
    """What a digest's event tells: ``count``, ``counts`` by event and task type, and the first ``events``, as CloudEvents."""
    told = [{"event": row["event"], "type": row["type"], "count": row["count"]} for row in counts[:MAX_COUNTS]]
    return {
        "route": route,
        "since": min(row["since"] for row in counts).isoformat(),
        "until": max(row["until"] for row in counts).isoformat(),
        "count": sum(row["count"] for row in counts),
        "counts": told,
        "others": sum(row["count"] for row in counts[MAX_COUNTS:]),
        "events": [event_of(row, public).to_cloudevent() for row in shown],
    }
