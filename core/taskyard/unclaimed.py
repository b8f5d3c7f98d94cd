"""What was handed to the broker a while ago, and nobody has taken up: its message is lost, or went to a worker that does not hear."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

#: What is queued stands at the head of its line, behind what runs: so far a look goes, and no further.
HEAD = 1000

_TASKS = text(
    """
SELECT lanes.lane FROM unnest(CAST(:lanes AS text[])) AS lanes(lane) WHERE EXISTS (
  SELECT FROM unnest(CAST(:queues AS text[])) AS named(queue) CROSS JOIN LATERAL (
    SELECT status, queued_at FROM tasks t WHERE t.in_line AND t.queue = named.queue AND t.lane = lanes.lane ORDER BY t.priority DESC, t.id LIMIT :head) AS first
  WHERE first.status = 'queued' AND first.queued_at < now() - :seconds * interval '1 second'
    AND NOT EXISTS (SELECT FROM queues q WHERE q.name = named.queue AND q.paused_at IS NOT NULL))"""
)
_DELIVERIES = text(
    """
SELECT EXISTS (
  SELECT FROM (SELECT status, updated_at FROM deliveries WHERE next_try_at IS NOT NULL ORDER BY next_try_at LIMIT :head) AS first
  WHERE first.status = 'queued' AND first.updated_at < now() - :seconds * interval '1 second')"""
)


def lanes_with_unclaimed(connection: Connection, queues: Sequence[str], lanes: Sequence[str], seconds: float) -> set[str]:
    """Which of these lanes (``sync``, ``async``, ``deliveries``) hold something that was queued ``seconds`` ago and is still to be claimed.

    Of tasks, only those in these queues count. What is queued in a paused queue is in no hurry.
    """
    asked = {"queues": list(queues), "lanes": [lane for lane in lanes if lane != "deliveries"], "head": HEAD, "seconds": seconds}
    found = set(connection.execute(_TASKS, asked).scalars()) if asked["lanes"] else set()
    if "deliveries" in lanes and connection.execute(_DELIVERIES, {"head": HEAD, "seconds": seconds}).scalar():
        found.add("deliveries")
    return found
