"""What the dispatcher asks the database when it wakes: is anything due, and which of the lines that workers serve have tasks?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

# One statement tells everything that an idle tick must know; each part is the first entry of an index.
_LOOK = text(
    """
SELECT
  EXISTS (SELECT 1 FROM tasks WHERE expires_at <= now() AND expires_at IS NOT NULL AND ended IS NULL AND status <> 'running') AS expiring,
  EXISTS (SELECT 1 FROM workers WHERE beat_at < now() - :silence * interval '1 second') AS silent,
  EXTRACT(epoch FROM (SELECT min(next_run_at) FROM tasks WHERE next_run_at IS NOT NULL) - clock_timestamp())::float8 AS run_in,
  EXTRACT(epoch FROM (SELECT min(next_try_at) FROM deliveries WHERE next_try_at IS NOT NULL) - clock_timestamp())::float8 AS try_in,
  (SELECT jsonb_agg(jsonb_build_object('queues', queues, 'slots', slots, 'pace', pace)) FROM workers) AS workers,
  (SELECT array_agg(name) FROM queues WHERE paused_at IS NOT NULL) AS paused"""
)

_WORKERS = text("SELECT queues, slots, pace FROM workers")

# One probe a line, however many tasks stand in it, and however many queues clients have invented: only the queues of registered workers are
# asked for. (In the index's order, or the planner might read the whole table for its one row.)
_LINES = text(
    """
SELECT served.queue, lanes.lane
FROM unnest(CAST(:queues AS text[])) AS served(queue) CROSS JOIN (VALUES ('sync'), ('async')) AS lanes(lane)
CROSS JOIN LATERAL (SELECT FROM tasks t WHERE t.in_line AND t.queue = served.queue AND t.lane = lanes.lane
  ORDER BY t.priority DESC, t.id LIMIT 1) AS any_task
WHERE NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = served.queue AND q.paused_at IS NOT NULL)
ORDER BY served.queue, lanes.lane"""
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is due now, in how many seconds the next thing is (None: nothing is planned), and who works."""

    expiring: bool
    silent: bool
    run_in: float | None
    try_in: float | None
    workers: Sequence[Mapping[str, Any]] = ()
    paused: Sequence[str] = ()

    def wait(self, tick: float) -> float:
        """Seconds until the next look, at most ``tick``. What was due is done, or somebody else has it: look again soon, not at once."""
        soonest = min([tick, *(s for s in (self.run_in, self.try_in) if s is not None)])
        return soonest if soonest > 0 else tick / 20


def look(connection: Connection, silence: float) -> Outlook:
    """Ask what is due. ``silence`` is in seconds."""
    row = connection.execute(_LOOK, {"silence": silence}).one()
    return Outlook(row.expiring, row.silent, row.run_in, row.try_in, row.workers or (), row.paused or ())


def workers(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """The registered workers: ``queues``, ``slots`` and ``pace`` of each."""
    return [row._asdict() for row in connection.execute(_WORKERS)]


def served_queues(workers: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The queues that these workers serve."""
    return frozenset(queue for worker in workers for queue in worker["queues"])


def lines(connection: Connection, queues: Collection[str]) -> list[tuple[str, str]]:
    """The (queue, lane) of these queues that have tasks in line and are not paused."""
    return [(row.queue, row.lane) for row in connection.execute(_LINES, {"queues": sorted(queues)})]
