"""Retention: tasks that ended long ago are deleted with their history and their log lines, some at a time.

No index is kept for it. Ids begin with their time (UUIDv7), and a task ends after its id was made: so whoever ended before a moment has
an id from before that moment, and stands at the beginning of the index of what has ended. What stands there too took long, or is still
being told of: it is passed over, page by page.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from taskyard.events import NO_TASK
from taskyard.queries import first_id
from taskyard.tables import TERMINAL

_NAMESPACES = text(
    """
WITH RECURSIVE walk(namespace) AS (
  (SELECT namespace FROM tasks WHERE ended IS NOT NULL ORDER BY namespace LIMIT 1)
  UNION ALL
  SELECT (SELECT t.namespace FROM tasks t WHERE t.ended IS NOT NULL AND t.namespace > walk.namespace ORDER BY t.namespace LIMIT 1)
  FROM walk WHERE walk.namespace IS NOT NULL
)
SELECT namespace, clock_timestamp() AS now FROM walk WHERE namespace IS NOT NULL"""
)
# A page of what stands first, and of that what is old. Deliveries go with their events, by their foreign key. One that is still to be
# sent keeps its task.
_PURGE = text(
    """
WITH page AS MATERIALIZED (
  SELECT id FROM tasks WHERE namespace = :namespace AND ended = :status AND id > :after AND id < :id ORDER BY id LIMIT :limit
), old AS MATERIALIZED (
  SELECT t.id FROM page JOIN tasks t USING (id)
  WHERE t.ended = :status AND t.finished_at < :before
    AND NOT EXISTS (SELECT FROM deliveries d WHERE d.task_id = t.id AND d.next_try_at IS NOT NULL)
  ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
), gone AS (
  DELETE FROM tasks t USING old WHERE t.id = old.id RETURNING t.id, t.subscribed
), told AS (
  DELETE FROM events e USING gone WHERE e.task_id = gone.id
), said AS (
  DELETE FROM task_logs l USING gone WHERE l.task_id = gone.id
), counted AS (
  DELETE FROM task_log_totals k USING gone WHERE k.task_id = gone.id
), wished AS (
  DELETE FROM subscriptions s USING gone WHERE s.task_id = gone.id AND gone.subscribed
)
SELECT (SELECT count(*) FROM gone) AS gone, (SELECT count(*) FROM page) AS read, (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last"""
)
# Events of no task stand together in the index by task, oldest first.
_PURGE_SYSTEM = text(
    """
WITH old AS MATERIALIZED (
  SELECT id FROM events e WHERE id IN (SELECT id FROM events WHERE task_id = :none ORDER BY task_id, id LIMIT :limit)
    AND time < now() - :seconds * interval '1 second'
    AND NOT EXISTS (SELECT FROM deliveries d WHERE d.event_id = e.id AND d.next_try_at IS NOT NULL)
  ORDER BY id FOR UPDATE SKIP LOCKED
)
DELETE FROM events e USING old WHERE e.id = old.id"""
)
_FIRST = UUID(int=0)


def purge_system(connection: Connection, seconds: float, limit: int) -> int:
    """Delete system events and digests that are older, with their deliveries; answers how many. One that is still to be sent stays."""
    return connection.execute(_PURGE_SYSTEM, {"none": NO_TASK, "seconds": seconds, "limit": limit}).rowcount


class Round:
    """One walk over all that may be old, a page at a time: it comes to everything, however much stands first and is not to be deleted.

    ``periods`` are seconds by terminal status; None keeps for ever.
    """

    def __init__(self, connection: Connection, periods: Mapping[str, float | None]) -> None:
        kept = {status: seconds for status in TERMINAL if (seconds := periods.get(status)) is not None}
        found = connection.execute(_NAMESPACES).all() if kept else []
        self._left = [(row.namespace, status, row.now.astimezone(UTC) - timedelta(seconds=seconds)) for row in found for status, seconds in kept.items()]
        self._after = _FIRST

    @property
    def done(self) -> bool:
        """Has it come to its end?"""
        return not self._left

    def purge(self, connection: Connection, limit: int) -> tuple[str, int]:
        """Look at up to ``limit`` tasks, and delete those that are old: their status, and how many. Others may be at it too."""
        namespace, status, before = self._left[0]
        values = {"namespace": namespace, "status": status, "before": before, "id": first_id(before), "after": self._after, "limit": limit}
        row = connection.execute(_PURGE, values).one()
        if row.read < limit:
            self._left.pop(0)
        self._after = row.last if row.read == limit else _FIRST
        return status, row.gone
