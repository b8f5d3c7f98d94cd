"""Databases with a long past: filled by PostgreSQL itself, since millions of tasks through the verbs would take hours."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

#: Rows from which on indexes are dropped before a fill, and made again after it.
MANY = 200_000
#: One task in so many has the rare type, and the rare tag.
RARE = 1000

# Ids are UUIDv7 (RFC 9562, section 5.7), as ours, and as old as their tasks: one each 100 ms up to an hour ago.
_ID = "(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid"
_MADE = f"""
WITH made AS MATERIALIZED (
  SELECT n, at, {_ID.format(at="at")} AS id
  FROM (SELECT n, now() - interval '1 hour' - (:count - n) * interval '100 ms' AS at FROM generate_series(1, :count) AS n) AS times
), """
_TASKS = """tasks AS (
  INSERT INTO tasks (id, type, queue, lane, priority, status, payload, result, error, tags, timeout, max_attempts, attempt, fence, version,
    created_at, updated_at, queued_at, started_at, finished_at)
  SELECT id, CASE WHEN n % :rare = 7 THEN 'bench.rare' WHEN n % 10 = 0 THEN 'bench.async' ELSE 'bench.sync' END,
    CASE WHEN n % 20 = 3 THEN 'mail' ELSE 'default' END, CASE WHEN n % 10 = 0 THEN 'async' ELSE 'sync' END, CASE WHEN n % 50 = 0 THEN 9 ELSE 5 END,
    CASE WHEN n % 100 = 1 THEN 'failed' WHEN n % 100 = 2 THEN 'cancelled' ELSE 'succeeded' END,
    jsonb_build_object('number', n), CASE WHEN n % 100 > 2 THEN 'null'::jsonb END,
    CASE WHEN n % 100 = 1 THEN '{"code": "ValueError", "message": "it was none"}'::jsonb END,
    CASE WHEN n % :rare = 9 THEN '{rare}'::text[] ELSE ARRAY['even', 'customer:' || n % 100] END, 60, 3, 1, 1, 4, at, at, NULL, at, at
  FROM made
)"""
_EVENTS = """, events AS (
  INSERT INTO events (task_id, namespace, type, time, attempt, data)
  SELECT id, 'default', told.type, at, told.attempt, told.data
  FROM made CROSS JOIN (VALUES (1, 'task.submitted', 0, '{}'::jsonb), (2, 'task.started', 1, '{"fence": 1, "worker": "taskyard@bench"}'),
    (3, 'task.succeeded', 1, '{}')) AS told(place, type, attempt, data)
  ORDER BY n, place
) SELECT"""
_WAITING = f"""
INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts)
SELECT {_ID.format(at="(now() - (:count - n) * interval '1 millisecond')")},
  'bench.sync', 'default', 'sync', 5, 'pending', jsonb_build_object('number', n), 60, 3
FROM generate_series(1, :count) AS n"""


def fill(engine: Engine, count: int) -> None:
    """So many ended tasks with their events, as they would have come in time; vacuumed, as they would be by now."""
    _without_indexes(engine, count, _MADE + _TASKS + _EVENTS)


def fill_line(engine: Engine, count: int) -> None:
    """So many tasks that wait."""
    _without_indexes(engine, count, _WAITING)


def _without_indexes(engine: Engine, count: int, statement: str) -> None:
    values = {"count": count, "rare": RARE}
    with engine.begin() as connection:
        dropped = _drop_indexes(connection) if count >= MANY else []
        connection.execute(text(statement), {name: value for name, value in values.items() if f":{name}" in statement})
        for index in dropped:
            connection.execute(text(index))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) tasks"))
        connection.execute(text("VACUUM (ANALYZE) events"))


def _drop_indexes(connection: Connection) -> list[str]:
    """Drop what no constraint needs; the statements that make it again."""
    connection.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
    found = connection.execute(
        text(
            "SELECT i.indexname, i.indexdef FROM pg_indexes i WHERE i.tablename IN ('tasks', 'events') AND i.schemaname = 'public' "
            "AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)"
        )
    ).all()
    for name, _ in found:
        connection.execute(text(f'DROP INDEX "{name}"'))
    return [definition for _, definition in found]
