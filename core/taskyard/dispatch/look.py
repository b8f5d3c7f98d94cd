"""What the dispatcher asks the database when it wakes: is anything due, and which lines have tasks?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
  (SELECT jsonb_agg(jsonb_build_object('queues', queues, 'slots', slots, 'pace', pace)) FROM workers) AS workers"""
)

# A loose index scan: one probe a line, however many tasks stand in it.
_LINES = text(
    """
WITH RECURSIVE line AS (
  (SELECT queue, lane FROM tasks WHERE in_line ORDER BY queue, lane LIMIT 1)
  UNION ALL
  SELECT n.queue, n.lane FROM line, LATERAL (
    SELECT queue, lane FROM tasks WHERE in_line AND (queue, lane) > (line.queue, line.lane) ORDER BY queue, lane LIMIT 1) n
)
SELECT queue, lane FROM line WHERE NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = line.queue AND q.paused_at IS NOT NULL)"""
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is due now, in how many seconds the next thing is (None: nothing is planned), and who works."""

    expiring: bool
    silent: bool
    run_in: float | None
    try_in: float | None
    workers: Sequence[Mapping[str, Any]] = ()

    def wait(self, tick: float) -> float:
        """Seconds until the next look, at most ``tick``. What was due is done, or somebody else has it: look again soon, not at once."""
        soonest = min([tick, *(s for s in (self.run_in, self.try_in) if s is not None)])
        return soonest if soonest > 0 else tick / 20


def look(connection: Connection, silence: float) -> Outlook:
    """Ask what is due. ``silence`` is in seconds."""
    row = connection.execute(_LOOK, {"silence": silence}).one()
    return Outlook(row.expiring, row.silent, row.run_in, row.try_in, row.workers or ())


def lines(connection: Connection) -> list[tuple[str, str]]:
    """Every (queue, lane) that has tasks in line and is not paused."""
    return [(row.queue, row.lane) for row in connection.execute(_LINES)]
