"""Quotas of a namespace, where they are kept: how many tasks it has submitted lately, and how many of its tasks live.

A rate is kept as one moment: until when the namespace is busy with what it has submitted, if each task keeps it busy for 1/rate seconds. It may be
busy for up to a second ahead, so that a second's tasks may come at once (the generic cell rate algorithm, ITU-T I.371). All web processes ask
the same row, on the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

#: Seconds ahead that a namespace may be busy: what may come at once.
AHEAD = 1.0

_TAKE = text(
    """
INSERT INTO submission_rates AS r (namespace, busy_until) VALUES (:namespace, now() + :cost * interval '1 second')
ON CONFLICT (namespace) DO UPDATE SET busy_until = GREATEST(r.busy_until, now()) + :cost * interval '1 second'
WHERE r.busy_until <= now() + :slack * interval '1 second'
RETURNING EXTRACT(epoch FROM busy_until - now())::float8"""
)
_BUSY = text("SELECT EXTRACT(epoch FROM busy_until - now())::float8 FROM submission_rates WHERE namespace = :namespace")
_LIVE = text("SELECT count(*) FROM (SELECT 1 FROM tasks WHERE namespace = :namespace AND ended IS NULL LIMIT :limit) AS live")


@dataclass(frozen=True, slots=True)
class Taken:
    """``busy``: seconds that the namespace is busy now. ``wait``: seconds until what was asked for may be had; 0 if it was taken."""

    busy: float
    wait: float = 0.0


def take(connection: Connection, namespace: str, rate: float, count: int) -> Taken:
    """Let a namespace submit ``count`` tasks at ``rate`` a second, if it may now. More than a second's tasks at once must find it idle; others then
    wait the longer. Commit at once: whoever submits for the namespace waits for that.
    """
    cost = count / rate
    slack = AHEAD - min(cost, AHEAD)
    busy = connection.execute(_TAKE, {"namespace": namespace, "cost": cost, "slack": slack}).scalar()
    if busy is not None:
        return Taken(busy)
    left = connection.execute(_BUSY, {"namespace": namespace}).scalar() or 0.0
    return Taken(left, max(left - slack, 0.001))


def live(connection: Connection, namespace: str, limit: int) -> int:
    """Tasks of a namespace that have not ended; counted up to ``limit``, by index."""
    return int(connection.execute(_LIVE, {"namespace": namespace, "limit": limit}).scalar_one())
