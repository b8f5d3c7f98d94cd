"""Which queues the broker has on behalf of workers, and which of them nobody needs any more.

A queue is needed while a registered worker serves it, or a task is in line there: its hint may be in the broker. Whoever registers a worker notes
its queues, before anything is declared in the broker; a dispatcher deletes what was not needed for a while. The broker's own expiry
(``x-expires``) is no way: it would change the arguments of queues that are there already, and the broker refuses those.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

_NOTE = text(
    """
INSERT INTO broker_queues (queue) SELECT unnest(CAST(:queues AS text[])) AS queue ORDER BY queue
ON CONFLICT (queue) DO UPDATE SET unused_since = NULL WHERE broker_queues.unused_since IS NOT NULL"""
)
_MARK = text(
    """
WITH used AS MATERIALIZED (
  SELECT b.queue, EXISTS (SELECT FROM workers w WHERE b.queue = ANY (w.queues)) OR in_line.found AS is_used
  FROM broker_queues b CROSS JOIN LATERAL (SELECT EXISTS (
    SELECT FROM (VALUES ('sync'), ('async')) AS lanes(lane) CROSS JOIN LATERAL (SELECT FROM tasks t
      WHERE t.in_line AND t.queue = b.queue AND t.lane = lanes.lane ORDER BY t.priority DESC, t.id LIMIT 1) AS any_task) AS found) AS in_line
)
UPDATE broker_queues b SET unused_since = CASE WHEN used.is_used THEN NULL ELSE now() END
FROM used WHERE b.queue = used.queue AND used.is_used = (b.unused_since IS NOT NULL)"""
)
_UNUSED = text("SELECT queue FROM broker_queues WHERE unused_since < now() - :seconds * interval '1 second' ORDER BY unused_since, queue LIMIT :limit")
_FORGET = text("DELETE FROM broker_queues WHERE queue = :queue AND unused_since IS NOT NULL")


def note_served(connection: Connection, queues: Sequence[str]) -> None:
    """A worker serves these queues, and will have the broker make them."""
    connection.execute(_NOTE, {"queues": sorted(set(queues))})


def mark_unused(connection: Connection) -> None:
    """Note since when each queue has neither a worker nor a task in line."""
    connection.execute(_MARK)


def unused(connection: Connection, seconds: float, limit: int) -> list[str]:
    """Queues that were marked as unused more than ``seconds`` ago, the longest unused first."""
    return list(connection.execute(_UNUSED, {"seconds": seconds, "limit": limit}).scalars())


def forget(connection: Connection, queue: str) -> None:
    """The broker has this queue no more. One that a worker has registered for meanwhile stays noted."""
    connection.execute(_FORGET, {"queue": queue})
