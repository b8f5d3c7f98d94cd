"""A waiting task's place in line, and when it may start: a bounded count, and an estimate that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Row, text

from taskyard import queries
from taskyard.tables import IN_LINE

#: Counting stops here: further ahead than this, a number tells little more.
COUNT_LIMIT = 10_000
#: An estimate that is further away than this is none.
HORIZON = timedelta(days=30)

# Two ranges of the line's index: as one condition with an OR, PostgreSQL would read on to the end of the line. In its order, or it would
# rather read the table wherever the line seems long.
_AHEAD = text(
    """
SELECT count(*) FROM (
  (SELECT 1 FROM tasks WHERE queue = :queue AND lane = :lane AND in_line AND priority > :priority AND status <> 'running'
   ORDER BY priority DESC, id LIMIT :limit)
  UNION ALL
  (SELECT 1 FROM tasks WHERE queue = :queue AND lane = :lane AND in_line AND priority = :priority AND id < :id AND status <> 'running'
   ORDER BY priority DESC, id LIMIT :limit)
  LIMIT :limit) AS ahead"""
)
_CREW = text(
    """
SELECT now() AS now, w.slots, w.pace, EXISTS (SELECT 1 FROM queues q WHERE q.name = :queue AND q.paused_at IS NOT NULL) AS paused
FROM workers w WHERE :queue = ANY (w.queues) AND w.beat_at > now() - :silence * interval '1 second'"""
)


@dataclass(frozen=True, slots=True)
class Place:
    """``position`` is 1 for the next; ``capped`` means: or further back. Both times are None where nothing can be said."""

    position: int | None
    capped: bool
    estimated_start: datetime | None


def place(connection: Connection, namespace: str, task_id: UUID, silence: float) -> Place:
    """Where a task stands. One that is not in line has no position; one with a planned time starts then at the earliest.

    Raises:
        NotFound: it is not there.
    """
    task = queries.task(connection, namespace, task_id)
    if task.status not in IN_LINE or task.status == "running" or task.next_run_at is not None:
        return Place(None, False, task.next_run_at)
    line = {"queue": task.queue, "lane": task.lane, "priority": task.priority, "id": task.id, "limit": COUNT_LIMIT}
    ahead = connection.execute(_AHEAD, line).scalar_one()
    crew = connection.execute(_CREW, {"queue": task.queue, "silence": silence}).all()
    capped = ahead == COUNT_LIMIT
    return Place(ahead + (not capped), capped, None if capped else _estimate(ahead + 1, task.type, task.lane, crew))


def _estimate(position: int, type_: str, lane: str, crew: Sequence[Row[tuple[object, ...]]]) -> datetime | None:
    """When so many have been started, if all take as long as this type took lately (or, unknown, as all types did) on all slots of the
    workers there are.
    """
    slots = sum(worker.slots.get(lane, 0) for worker in crew)
    known = [worker.pace[type_] for worker in crew if type_ in worker.pace] or [seconds for worker in crew for seconds in worker.pace.values()]
    if not slots or not known or any(worker.paused for worker in crew):
        return None
    wait = timedelta(seconds=min(position * sum(known) / len(known) / slots, HORIZON.total_seconds()))
    now: datetime = crew[0].now
    return now + wait if wait < HORIZON else None
