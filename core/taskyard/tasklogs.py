"""What handlers say with ``ctx.log``, kept with their task: at most :data:`taskyard.logline.LIMIT` bytes of each task, the oldest lines go first.

A line draws its id from the events' sequence, so that one number says how far a stream of both has come (see feed.py). Lines of a run are
written by its fence while it runs: before its end is recorded, and never after.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from taskyard.logline import LIMIT

#: The type of a line in a task's stream.
EVENT: Final = "task.log"
#: No line has fewer bytes: its time, its level and the names of both.
SHORTEST: Final = 64

# Joined in the order that it is said in: the ids that are drawn for it tell that order for ever.
_WRITE = text(
    """
WITH said AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id uuid, fence bigint, dropped bigint, lines jsonb)
), mine AS MATERIALIZED (
  SELECT t.id, t.fence, t.attempt, said.dropped, said.lines FROM said JOIN tasks t ON t.id = said.id AND t.fence = said.fence AND t.status = 'running'
  ORDER BY said.id FOR UPDATE OF t
), kept AS (
  INSERT INTO task_logs (id, task_id, attempt, fence, time, level, message, fields, bytes)
  SELECT nextval('events_id_seq'), id, attempt, fence, (line ->> 'time')::timestamptz, line ->> 'level', line ->> 'message', line -> 'fields',
    octet_length(line::text)
  FROM (SELECT mine.*, l.line FROM mine CROSS JOIN LATERAL jsonb_array_elements(mine.lines) WITH ORDINALITY AS l(line, n) ORDER BY mine.id, l.n) AS told
  RETURNING task_id, bytes
)
INSERT INTO task_log_totals AS k (task_id, bytes, dropped)
SELECT id, (SELECT COALESCE(sum(bytes), 0) FROM kept WHERE task_id = mine.id), dropped FROM mine
ON CONFLICT (task_id) DO UPDATE SET bytes = k.bytes + EXCLUDED.bytes, dropped = k.dropped + EXCLUDED.dropped
RETURNING task_id, bytes"""
)
# As many of the oldest as could be needed, so that a long log is not read through for the few that go.
_TRIM = text(
    """
WITH oldest AS (
  SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM (
    SELECT id, bytes FROM task_logs WHERE task_id = :task_id ORDER BY id LIMIT :most) AS first
), gone AS (
  DELETE FROM task_logs l USING oldest o WHERE l.task_id = :task_id AND l.id = o.id AND o.before < :excess RETURNING l.bytes
)
UPDATE task_log_totals SET bytes = bytes - (SELECT COALESCE(sum(bytes), 0) FROM gone), dropped = dropped + (SELECT count(*) FROM gone)
WHERE task_id = :task_id"""
)


def write(connection: Connection, rows: str) -> list[UUID]:
    """Keep lines of runs that still are their worker's; answers their tasks.

    ``rows`` is a JSON list of ``{"id", "fence", "dropped", "lines"}``: ``dropped`` counts the lines that did not come this far, each of
    ``lines`` has ``time``, ``level``, ``message`` and ``fields``.
    """
    written = connection.execute(_WRITE, {"rows": rows}).all()
    for row in written:
        if (excess := row.bytes - LIMIT) > 0:
            connection.execute(_TRIM, {"task_id": row.task_id, "excess": excess, "most": excess // SHORTEST + 1})
    return [row.task_id for row in written]
