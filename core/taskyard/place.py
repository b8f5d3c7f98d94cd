"""A waiting task's place in line, and when it may start: a bounded count, and an estimate that says what it is.

Namespaces share their queues, and clients of one must not count what others have. So the place counts the tasks of its own namespace alone; the
estimate takes the whole line into account, for it would be wrong otherwise, and is coarse: it says no more than waiting for the task does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from taskyard import queries

#: Counting stops here: further back than this, a number tells little more. A thousand cost about what reading the task costs, measured.
COUNT_LIMIT = 1_000
#: An estimate that is further away than this is none.
HORIZON = timedelta(days=30)

# Two ranges of the line's index: as one condition with an OR, PostgreSQL would read on to the end of the line. In its order, or it would
# rather read the table wherever the line seems long.
_AHEAD = text(
    """
SELECT count(*) AS line, count(*) FILTER (WHERE namespace = :namespace) AS own FROM (
  (SELECT namespace FROM tasks WHERE queue = :queue AND lane = :lane AND in_line AND priority > :priority AND status <> 'running'
   ORDER BY priority DESC, id LIMIT :limit)
  UNION ALL
  (SELECT namespace FROM tasks WHERE queue = :queue AND lane = :lane AND in_line AND priority = :priority AND id < :id AND status <> 'running'
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
    """``position`` is 1 for the next of its namespace. ``capped``: that many tasks stand before it in line that counting stopped, and more of its
    namespace may be among the others. None where nothing can be said.
    """

    position: int | None = None
    estimated_start: datetime | None = None
    capped: bool = False


def is_in_line(task: Mapping[str, Any]) -> bool:
    """Does a task have a place, which changes while its version stays?"""
    return task["status"] in ("pending", "queued") and task["next_run_at"] is None


def placed_task(connection: Connection, namespace: str, task_id: UUID, silence: float) -> dict[str, Any]:
    """A task's columns, with those of its :class:`Place`. Raises NotFound."""
    task = dict(queries.task(connection, namespace, task_id)._mapping)
    return task | asdict(place(connection, task, silence))


def place(connection: Connection, task: Mapping[str, Any], silence: float) -> Place:
    """Where a task stands. One that is not in line has no position; one with a planned time starts then at the earliest. Workers that have not
    beaten for ``silence`` seconds do not count.
    """
    if not is_in_line(task):
        return Place(None, task["next_run_at"])
    values = {name: task[name] for name in ("queue", "lane", "priority", "id", "namespace")}
    ahead = connection.execute(_AHEAD, values | {"limit": COUNT_LIMIT}).one()
    if ahead.line >= COUNT_LIMIT:
        return Place(min(ahead.own + 1, COUNT_LIMIT), capped=True)
    crew = connection.execute(_CREW, {"queue": task["queue"], "silence": silence}).all()
    return Place(ahead.own + 1, _estimate(ahead.line + 1, task["type"], task["lane"], crew))


def _estimate(position: int, type_: str, lane: str, crew: Sequence[Row[tuple[object, ...]]]) -> datetime | None:
    """When so many have been started, if all take as long as this type took lately (or, unknown, as all types did) on all slots of the
    workers there are.
    """
    slots = sum(worker.slots.get(lane, 0) for worker in crew)
    known = [worker.pace[type_] for worker in crew if type_ in worker.pace] or [seconds for worker in crew for seconds in worker.pace.values()]
    if not slots or not known or any(worker.paused for worker in crew):
        return None
    wait = timedelta(seconds=coarse(min(position * sum(known) / len(known) / slots, HORIZON.total_seconds())))
    now: datetime = crew[0].now
    return now + wait if wait < HORIZON else None


def coarse(seconds: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ... seconds. An exact estimate would be a count of the whole line."""
    scale = 10.0 ** math.floor(math.log10(max(seconds, 1.0)))
    return next(step * scale for step in (1, 2, 5, 10) if seconds <= step * scale)
