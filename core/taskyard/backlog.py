"""Queues as people see them: how much waits in each, and pausing. Counts are bounded, so that a deep backlog stays cheap to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from taskyard.errors import NotFound
from taskyard.spelling import did_you_mean

#: Counting stops here: for pending, queued and running at each priority of each lane of a queue; for scheduled and held over all.
COUNT_LIMIT = 10_000
#: What all levels of all queues share: a few microseconds a row. Where more levels are deep, each is counted less far.
COUNT_BUDGET = 20_000
#: Queues that are found by their tasks alone: so many, by name.
QUEUE_LIMIT = 500


@dataclass(slots=True)
class Depth:
    """One queue. ``capped`` says that counting stopped early: the true numbers are at least these."""

    name: str
    paused_at: datetime | None = None
    scheduled: int = 0
    pending: int = 0
    queued: int = 0
    running: int = 0
    held: int = 0
    capped: bool = False
    workers: list[str] = field(default_factory=list)


# The queues that have tasks in line, and those of `known`: hops from queue to queue over the index, of which only so many are made, for
# a client can name any queue.
_NAMED = """
WITH RECURSIVE walk(queue, hop) AS (
  (SELECT queue, 1 FROM tasks WHERE in_line ORDER BY queue LIMIT 1)
  UNION ALL
  SELECT (SELECT t.queue FROM tasks t WHERE t.in_line AND t.queue > walk.queue ORDER BY t.queue LIMIT 1), hop + 1
  FROM walk WHERE walk.queue IS NOT NULL AND hop < :hops
), named AS (
  SELECT unnest(CAST(:known AS text[])) AS queue UNION SELECT queue FROM walk WHERE queue IS NOT NULL
), level AS (
  SELECT named.queue, lanes.lane, p.priority, count(*) OVER () AS n_levels
  FROM named CROSS JOIN (VALUES ('sync'), ('async')) AS lanes(lane) CROSS JOIN generate_series(0, 9) AS p(priority)
  CROSS JOIN LATERAL (SELECT FROM tasks t WHERE t.in_line AND t.queue = named.queue AND t.lane = lanes.lane AND t.priority = p.priority
    ORDER BY t.id LIMIT 1) AS any_task
)"""
# (Each probe has the index's order: without one, the planner trusts to luck for its one row, and reads the whole table where there is none.)
# Within one priority the line is in order of dispatch: what is queued or running stands at its head. So the head of each
# priority shows all of it, however many are pending behind.
_IN_LINE = text(
    _NAMED
    + """
SELECT level.queue, level.lane, head.type, head.status, sum(head.n)::bigint AS n, bool_or(head.n_all >= head.cap) AS capped
FROM level CROSS JOIN LATERAL (
  SELECT type, status, count(*) AS n, sum(count(*)) OVER () AS n_all, LEAST(:cap, :budget / level.n_levels) AS cap FROM (
    SELECT type, status FROM tasks t WHERE t.in_line AND t.queue = level.queue AND t.lane = level.lane AND t.priority = level.priority
    ORDER BY t.id LIMIT LEAST(:cap, :budget / level.n_levels)) AS first
  GROUP BY type, status) AS head
GROUP BY level.queue, level.lane, head.type, head.status"""
)
# A parked task counts as pending: it has been in line before.
_WAITING = text(
    """
SELECT queue, lane, type, status, count(*) AS n, (sum(count(*)) OVER ()) >= :cap AS capped
FROM (SELECT queue, lane, type, status FROM tasks WHERE next_run_at IS NOT NULL ORDER BY next_run_at LIMIT :cap) AS first GROUP BY queue, lane, type, status"""
)
_HELD = text(
    """
SELECT queue, lane, type, 'held' AS status, count(*) AS n, (sum(count(*)) OVER ()) >= :cap AS capped
FROM (SELECT queue, lane, type FROM tasks WHERE NOT in_line AND ended IS NULL AND next_run_at IS NULL LIMIT :cap) AS first GROUP BY queue, lane, type"""
)
# The first that is not started at each priority: like the dispatcher, this passes over what runs. When a task that ran before came back
# in line is told by its last change.
_OLDEST = text(
    _NAMED
    + """
SELECT level.queue, EXTRACT(epoch FROM now() - min(oldest.ready_at))::float8 AS seconds
FROM level CROSS JOIN LATERAL (
  SELECT CASE WHEN t.fence = 0 THEN GREATEST(t.created_at, t.run_at) ELSE t.updated_at END AS ready_at FROM tasks t
  WHERE t.in_line AND t.queue = level.queue AND t.lane = level.lane AND t.priority = level.priority AND t.status IN ('pending', 'queued')
  ORDER BY t.id LIMIT 1) AS oldest
GROUP BY level.queue"""
)
# A parked task is pending with a time; one that waits for a retry is scheduled. A park is a change, so of a parked task that ran before, the
# last start is what its last change is of others. (Parked tasks are soon due. However many are planned behind them, only so many are looked at.)
_PARKED_FIRST = """
SELECT type, queue, CASE WHEN fence = 0 THEN GREATEST(created_at, run_at) ELSE started_at END AS ready_at
FROM (SELECT * FROM tasks WHERE next_run_at IS NOT NULL ORDER BY next_run_at LIMIT :cap) AS due WHERE status = 'pending'"""
_PARKED = text(f"SELECT type, queue, count(*) AS n FROM ({_PARKED_FIRST}) AS first GROUP BY type, queue")
_OLDEST_PARKED = text(f"SELECT queue, EXTRACT(epoch FROM now() - min(ready_at))::float8 AS seconds FROM ({_PARKED_FIRST}) AS first GROUP BY queue")
_WORKERS = text("SELECT name, unnest(queues) AS queue FROM workers WHERE beat_at > now() - :silence * interval '1 second' ORDER BY name")


def depths(connection: Connection, declared: Iterable[str], silence: float) -> list[Depth]:
    """Every known queue by name: ``declared`` ones (handlers name them), paused ones, and those with tasks or workers.

    Workers that were silent for ``silence`` seconds do not count.
    """
    known = {name: Depth(name) for name in declared}
    for row in connection.execute(text("SELECT name, paused_at FROM queues")):
        known.setdefault(row.name, Depth(row.name)).paused_at = row.paused_at
    for row in connection.execute(_WORKERS, {"silence": silence}):
        known.setdefault(row.queue, Depth(row.queue)).workers.append(row.name)
    for row in live_counts(connection, known):
        depth = known.setdefault(row.queue, Depth(row.queue))
        setattr(depth, row.status, getattr(depth, row.status) + row.n)
        depth.capped = depth.capped or row.capped
    return [known[name] for name in sorted(known)]


def live_counts(connection: Connection, known: Iterable[str]) -> list[Row[Any]]:
    """How many tasks live, by ``queue``, ``lane``, ``type`` and ``status``. Looks into the ``known`` queues and others that it finds."""
    rows = list(connection.execute(_IN_LINE, {"cap": COUNT_LIMIT, "budget": COUNT_BUDGET, "known": list(known), "hops": QUEUE_LIMIT}))
    return rows + [row for statement in (_WAITING, _HELD) for row in connection.execute(statement, {"cap": COUNT_LIMIT})]


def oldest_ready(connection: Connection, known: Iterable[str]) -> dict[str, float]:
    """For how many seconds the oldest task of each queue has been ready without being started, in line or parked."""
    oldest = {row.queue: row.seconds for row in connection.execute(_OLDEST, {"known": list(known), "hops": QUEUE_LIMIT})}
    for row in connection.execute(_OLDEST_PARKED, {"cap": COUNT_LIMIT}):
        oldest[row.queue] = max(row.seconds, oldest.get(row.queue, 0.0))
    return oldest


def parked(connection: Connection) -> list[Row[Any]]:
    """How many tasks are parked (see the verbs claim and finish): ``n`` by ``type`` and ``queue``, counted up to COUNT_LIMIT."""
    return list(connection.execute(_PARKED, {"cap": COUNT_LIMIT}))


_PAUSE = text(
    """INSERT INTO queues (name, paused_at) VALUES (:name, now())
    ON CONFLICT (name) DO UPDATE SET paused_at = COALESCE(queues.paused_at, EXCLUDED.paused_at)"""
)


def pause(connection: Connection, name: str, declared: Iterable[str], silence: float) -> Depth:
    """Stop the dispatch of a queue. What runs goes on; what was handed to the broker steps back when a worker takes it up.

    Raises:
        NotFound: no such queue is known; names the nearest one.
    """
    depth = _known(connection, name, declared, silence)
    connection.execute(_PAUSE, {"name": name})
    depth.paused_at = connection.execute(text("SELECT paused_at FROM queues WHERE name = :name"), {"name": name}).scalar()
    return depth


def resume(connection: Connection, name: str, declared: Iterable[str], silence: float) -> Depth:
    """Start the dispatch of a queue again. The caller announces it after the commit. Raises NotFound as :func:`pause`."""
    depth = _known(connection, name, declared, silence)
    connection.execute(text("UPDATE queues SET paused_at = NULL WHERE name = :name"), {"name": name})
    depth.paused_at = None
    return depth


def _known(connection: Connection, name: str, declared: Iterable[str], silence: float) -> Depth:
    known = {depth.name: depth for depth in depths(connection, declared, silence)}
    if name not in known:
        raise NotFound(f"No queue {name!r} is known.{did_you_mean(name, known)}")
    return known[name]
