"""What was handed to the broker a while ago, and nobody has taken up: its message is lost, or went to a worker that does not hear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

#: What a worker consumes notifications by.
DELIVERIES: Final = ("", "deliveries")
#: What is queued stands at the head of its line, behind what runs: so far a look goes, and no further.
HEAD = 10_000

_TASKS = text(
    """
SELECT asked.queue, asked.lane FROM unnest(CAST(:queues AS text[]), CAST(:lanes AS text[])) AS asked(queue, lane)
WHERE NOT EXISTS (SELECT FROM queues q WHERE q.name = asked.queue AND q.paused_at IS NOT NULL) AND EXISTS (
  SELECT FROM (
    SELECT status, queued_at FROM tasks t WHERE t.in_line AND t.queue = asked.queue AND t.lane = asked.lane ORDER BY t.priority DESC, t.id LIMIT :head) AS first
  WHERE first.status = 'queued' AND first.queued_at < now() - :seconds * interval '1 second')"""
)
_DELIVERIES = text(
    """
SELECT EXISTS (
  SELECT FROM (SELECT status, updated_at FROM deliveries WHERE next_try_at IS NOT NULL ORDER BY next_try_at LIMIT :head) AS first
  WHERE first.status = 'queued' AND first.updated_at < now() - :seconds * interval '1 second')"""
)


def consumed_with_unclaimed(connection: Connection, consumed: Sequence[tuple[str, str]], seconds: float) -> set[tuple[str, str]]:
    """Of which of these (queue, lane), or :data:`DELIVERIES`, something was queued ``seconds`` ago and is still to be claimed.

    What is queued in a paused queue is in no hurry, and does not count.
    """
    lines = [one for one in consumed if one != DELIVERIES]
    found: set[tuple[str, str]] = set()
    if lines:
        asked = {"queues": [queue for queue, _ in lines], "lanes": [lane for _, lane in lines], "head": HEAD, "seconds": seconds}
        found |= {(row.queue, row.lane) for row in connection.execute(_TASKS, asked)}
    if DELIVERIES in consumed and connection.execute(_DELIVERIES, {"head": HEAD, "seconds": seconds}).scalar():
        found.add(DELIVERIES)
    return found
