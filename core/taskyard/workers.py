"""Workers as their rows tell of them: which live, and which of those claim and end nothing although tasks wait for their free slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from taskyard.settings import Settings
from taskyard.unclaimed import HEAD

#: A live worker is stuck when it has claimed and ended nothing for so many times ``dispatch.sweep_after``, and a task has waited as long for it.
SWEEPS = 2

# A worker of the version before says nothing of its progress: nobody knows. A queued task that was never claimed has waited since it was
# ready; one that ran before, since it was sent to the broker.
_LIVE = text(
    """
SELECT w.name, COALESCE(w.host, split_part(w.name, '@', 2)) AS host, EXTRACT(epoch FROM now() - w.progressed_at)::float8 AS idle,
  w.progressed_at < now() - :limit * interval '1 second' AND EXISTS (
    SELECT FROM unnest(w.queues) AS served(queue) CROSS JOIN (VALUES ('sync'), ('async')) AS lanes(lane)
    WHERE COALESCE((w.busy ->> lane)::int, 0) < COALESCE((w.slots ->> lane)::int, 0)
      AND NOT EXISTS (SELECT FROM queues q WHERE q.name = served.queue AND q.paused_at IS NOT NULL)
      AND EXISTS (
        SELECT FROM (SELECT status, fence, created_at, run_at, queued_at FROM tasks t
          WHERE t.in_line AND t.queue = served.queue AND t.lane = lanes.lane ORDER BY t.priority DESC, t.id LIMIT :head) AS first
        WHERE first.status = 'queued'
          AND CASE WHEN first.fence = 0 THEN GREATEST(first.created_at, first.run_at) ELSE first.queued_at END < now() - :limit * interval '1 second')
  ) AS stuck
FROM workers w WHERE w.beat_at > now() - :silence * interval '1 second' ORDER BY w.name"""
)


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that beat lately. ``idle``: the seconds since it claimed a task or recorded an end; None if it does not tell."""

    name: str
    host: str
    idle: float | None
    stuck: bool


def live(connection: Connection, settings: Settings) -> list[LiveWorker]:
    """Every worker that beat within ``dispatch.worker_silence``, by name."""
    dispatch = settings.dispatch
    values = {"silence": dispatch.worker_silence, "limit": SWEEPS * dispatch.sweep_after, "head": HEAD}
    return [LiveWorker(row.name, row.host, row.idle, bool(row.stuck)) for row in connection.execute(_LIVE, values)]


def served_queues(connection: Connection, silence: float) -> frozenset[str]:
    """The queues of workers that beat within ``silence`` seconds."""
    found = text("SELECT DISTINCT unnest(queues) FROM workers WHERE beat_at > now() - :silence * interval '1 second'")
    return frozenset(connection.execute(found, {"silence": silence}).scalars())


def stuck_sentence(workers: Sequence[LiveWorker]) -> str | None:
    """What is wrong with these live workers; None if each of them progresses. It names none: clients may read it."""
    stuck = [worker for worker in workers if worker.stuck]
    if not stuck:
        return None
    return f"{len(stuck)} of {len(workers)} claimed and ended nothing for {longest(stuck):.0f} s, although tasks wait for their free slots"


def longest(stuck: Sequence[LiveWorker]) -> float:
    """Seconds since the last progress of the worker that has made none for the longest time; 0 if there is none."""
    return max((worker.idle or 0.0 for worker in stuck), default=0.0)
