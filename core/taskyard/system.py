"""What happens to the installation and not to a task: ``worker.lost``, ``plugin.failed``, ``queue.stalled``, ``delivery.dead``.

Such an event is a row among the others, of the task that is none. What goes on for a while (a stalled queue, a failed plugin) is a row of
``conditions`` from its beginning to its end. Any role may write one there; a dispatcher tells it, once: it knows the routes by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from taskyard import backlog
from taskyard import ids as public_ids
from taskyard.events import NAMESPACE, NO_TASK
from taskyard.routes import WANTS_SYSTEM
from taskyard.storable import to_json


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """An event that is of no task. By what it has a value for, routes choose it; ``origin`` is a route that is not told of it."""

    event: str
    data: Mapping[str, Any]
    namespace: str | None = None
    type: str | None = None
    queue: str | None = None
    priority: int | None = None
    tags: Sequence[str] | None = None
    origin: str | None = None


_TELL = text(
    f"""
WITH told AS MATERIALIZED (
  SELECT nextval('events_id_seq') AS event_id, s.* FROM jsonb_to_recordset(CAST(:rows AS jsonb))
    AS s(event text, data jsonb, namespace text, type text, queue text, priority int, tags text[], origin text)
), recorded AS (
  INSERT INTO events (id, task_id, namespace, type, attempt, data) OVERRIDING SYSTEM VALUE
  SELECT event_id, '{NO_TASK}', COALESCE(namespace, '{NAMESPACE}'), event, 0, data FROM told
), wanted AS MATERIALIZED (
  SELECT told.*, r.name AS route, r.notifier, r.every IS NOT NULL AS folds
  FROM told JOIN routes r ON {WANTS_SYSTEM} AND r.name IS DISTINCT FROM told.origin
), announced AS (
  INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event)
  SELECT event_id, COALESCE(namespace, '{NAMESPACE}'), '{NO_TASK}', route, notifier, event FROM wanted WHERE NOT folds
)
INSERT INTO digest_items (route, event_id, event, type) SELECT route, event_id, event, type FROM wanted WHERE folds"""
)


def tell(connection: Connection, happened: Sequence[SystemEvent]) -> None:
    """Write events into the history, and the deliveries that routes want of them."""
    if happened:
        connection.execute(_TELL, {"rows": to_json([asdict(one) for one in happened])})


# A delivery that told of a dead one, and is dead itself, is told to nobody: that could go on for ever.
_DEAD = text(
    """
SELECT d.id, d.event, d.route, d.notifier, d.namespace, d.task_id, d.tries -> -1 ->> 'detail' AS cause, jsonb_array_length(d.tries) AS tries,
  t.type, t.queue, t.priority, t.tags
FROM deliveries d LEFT JOIN tasks t ON t.id = d.task_id
WHERE d.id = ANY (CAST(:ids AS bigint[])) AND d.event IS DISTINCT FROM 'delivery.dead' ORDER BY d.id"""
)


def tell_dead(connection: Connection, ids: Sequence[int]) -> None:
    """Tell of deliveries that were given up: once each, and not by the route that gave up."""
    public = public_ids.of(connection)
    tell(
        connection,
        [
            SystemEvent(
                "delivery.dead",
                {
                    "delivery": str(public.hide(row.id)),
                    "event": row.event,
                    "route": row.route,
                    "notifier": row.notifier,
                    "tries": row.tries,
                    "cause": row.cause,
                    "task_id": None if row.task_id == NO_TASK else str(row.task_id),
                },
                row.namespace,
                row.type,
                row.queue,
                row.priority,
                row.tags,
                origin=row.route,
            )
            for row in connection.execute(_DEAD, {"ids": list(ids)})
        ],
    )


# --- conditions -----------------------------------------------------------------------------------------------------------

_BEGIN = text(
    """
INSERT INTO conditions (kind, subject, data)
SELECT :kind, s.subject, s.data FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(subject text, data jsonb) ORDER BY s.subject
ON CONFLICT (kind, subject) DO UPDATE SET data = EXCLUDED.data, since = now(), told_at = NULL WHERE conditions.data IS DISTINCT FROM EXCLUDED.data"""
)
_END = text("DELETE FROM conditions WHERE kind = :kind AND subject = ANY (CAST(:subjects AS text[]))")
_UNTOLD = text("UPDATE conditions SET told_at = now() WHERE told_at IS NULL RETURNING kind, subject, data")


def note_plugins(connection: Connection, states: Mapping[str, str | None]) -> None:
    """Say which plugins this process has failed to load, or to start: the reason by name, None for one that works. The same reason twice is once."""
    rows = [{"subject": name, "data": {"reason": reason}} for name, reason in states.items() if reason is not None]
    connection.execute(_END, {"kind": "plugin.failed", "subjects": [name for name, reason in states.items() if reason is None]})
    if rows:
        connection.execute(_BEGIN, {"kind": "plugin.failed", "rows": to_json(rows)})


def failed_plugins(connection: Connection) -> dict[str, str]:
    """Why plugins do not work somewhere, by name, as the process that looked last has said."""
    statement = text("SELECT subject, data ->> 'reason' AS reason FROM conditions WHERE kind = 'plugin.failed' ORDER BY subject")
    return {row.subject: row.reason for row in connection.execute(statement)}


# Of dispatchers that look at the same moment, one does: another might have looked before a queue stalled, and take the news back.
_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtextextended('taskyard conditions', 0))")
_STALLED = text("SELECT subject FROM conditions WHERE kind = 'queue.stalled'")
_PAUSED = text("SELECT name FROM queues WHERE paused_at IS NOT NULL")


def look(connection: Connection, stalled_after: float, queues: Iterable[str] = ()) -> list[SystemEvent]:
    """Look for queues whose oldest ready task waits longer than ``stalled_after`` seconds, and tell all conditions that are new.

    A queue is told of again when it has recovered in between. A paused one is not stalled.
    """
    if not connection.execute(_ALONE).scalar():
        return []
    paused = set(connection.execute(_PAUSED).scalars())
    waits = {queue: seconds for queue, seconds in backlog.oldest_ready(connection, queues).items() if seconds > stalled_after and queue not in paused}
    before = set(connection.execute(_STALLED).scalars())
    if over := sorted(before - waits.keys()):
        connection.execute(_END, {"kind": "queue.stalled", "subjects": over})
    if new := sorted(waits.keys() - before):
        rows = [{"subject": queue, "data": {"oldest_seconds": round(waits[queue], 1), "limit_seconds": stalled_after}} for queue in new]
        connection.execute(_BEGIN, {"kind": "queue.stalled", "rows": to_json(rows)})
    news = [_event(row.kind, row.subject, row.data) for row in connection.execute(_UNTOLD)]
    tell(connection, news)
    return news


def _event(kind: str, subject: str, data: Mapping[str, Any]) -> SystemEvent:
    name = kind.partition(".")[0]
    return SystemEvent(kind, {name: subject, **data}, queue=subject if name == "queue" else None)
