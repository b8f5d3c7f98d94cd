"""All events in one order, for whoever follows them: none left out, none twice.

Ids are drawn before a commit, so a lower one may appear after a higher one. Who reads "all above the last one that I saw" misses
it. So nobody reads further than what is settled: the last id that was drawn at some moment, once everybody who wrote events at that
moment has committed or rolled back. A writer is known by its lock: a statement locks the table before it draws its first id, and
keeps that lock until its transaction ends (PostgreSQL's manual, "Explicit Locking"). No column, index or commit costs more for it.

Lines that handlers log have ids of the same sequence. Only the stream of their task tells them, so they are read for that alone.

Two conditions: the sequence hands out ids one by one (CACHE 1, its default), and nobody leaves a transaction open that has written
events (a prepared one, say): until it ends, no stream is told anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from taskyard import tasklogs
from taskyard.events import OUTCOME
from taskyard.ids import PLAIN, PublicIds
from taskyard.notifiers import Event, TaskInfo
from taskyard.queries import TaskFilters, id_digits, id_only

_DRAWN = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_id_seq")
_WRITERS = text(
    """
SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
  AND relation IN ('events'::regclass, 'task_logs'::regclass) AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
)
_TOLD = f"""
SELECT e.id, e.task_id, e.namespace, e.type AS event, e.time, e.attempt, e.data, t.type, t.queue, t.priority, t.tags, t.status, t.created_at, t.parent_id,
  t.unique_key,
  {OUTCOME} AS outcome
FROM events e JOIN tasks t ON t.id = e.task_id WHERE e.id > :after AND e.id <= :upto"""
_EVENTS = text(f"{_TOLD} ORDER BY e.id LIMIT :limit")
_EVENTS_OF_NAMESPACE = text(f"{_TOLD} AND e.namespace = :namespace ORDER BY e.id LIMIT :limit")
_EVENTS_OF_TASK = text(f"{_TOLD} AND e.task_id = :task_id ORDER BY e.id LIMIT :limit")
_LINES = text(
    f"""
SELECT l.id, l.task_id, t.namespace, '{tasklogs.EVENT}' AS event, l.time, l.attempt,
  jsonb_build_object('level', l.level, 'message', l.message, 'fields', l.fields, 'fence', l.fence) AS data,
  t.type, t.queue, t.priority, t.tags, t.status, t.created_at
FROM task_logs l JOIN tasks t ON t.id = l.task_id WHERE l.task_id = ANY (CAST(:task_ids AS uuid[])) AND l.id > :after AND l.id <= :upto
ORDER BY l.id LIMIT :limit"""
)


@dataclass(frozen=True, slots=True)
class Horizon:
    """The last id that was drawn at a moment, and who was writing then: it is settled when none of them is at it any more."""

    last: int
    writers: frozenset[str]


def drawn(connection: Connection) -> int:
    """The last id that was drawn; events up to it may still be on their way."""
    return int(connection.execute(_DRAWN).scalar_one())


def horizon(connection: Connection) -> Horizon:
    """Where reading may end once its writers are done. Two statements: who drew an id by the first is seen by the second, or done."""
    last = drawn(connection)
    return Horizon(last, writers(connection))


def writers(connection: Connection) -> frozenset[str]:
    """The transactions that may have drawn ids and not committed them."""
    return frozenset(connection.execute(_WRITERS).scalars())


def events(connection: Connection, after: int, upto: int, limit: int, task_id: UUID | None = None, namespace: str | None = None) -> Sequence[RowMapping]:
    """Events above one id up to another, oldest first, each with its task as it is now; of one task with its log lines, of a namespace, or of all."""
    bounds = {"after": after, "upto": upto, "limit": limit}
    if task_id is not None:
        told = connection.execute(_EVENTS_OF_TASK, bounds | {"task_id": task_id}).mappings().all()
        return merged(told, lines(connection, after, upto, limit, [task_id]), limit)
    if namespace is not None:
        return connection.execute(_EVENTS_OF_NAMESPACE, bounds | {"namespace": namespace}).mappings().all()
    return connection.execute(_EVENTS, bounds).mappings().all()


def lines(connection: Connection, after: int, upto: int, limit: int, task_ids: Collection[UUID]) -> Sequence[RowMapping]:
    """What the handlers of these tasks have logged between two ids, as :func:`events` are."""
    return connection.execute(_LINES, {"after": after, "upto": upto, "limit": limit, "task_ids": list(task_ids)}).mappings().all()


def merged(events: Sequence[RowMapping], lines: Sequence[RowMapping], limit: int) -> Sequence[RowMapping]:
    """The first of both: each of them has all of its own up to its end, or ``limit`` of them."""
    return sorted([*events, *lines], key=lambda row: row["id"])[:limit] if lines else events


def is_wanted(row: RowMapping, namespace: str | None, filters: TaskFilters) -> bool:
    """Do the filters of a list let this event's task through? As in :func:`taskyard.queries.list_tasks`, which asks PostgreSQL."""
    return (
        namespace in (None, row["namespace"])
        and row["event"] != tasklogs.EVENT
        and (not filters.type or row["type"] in filters.type)
        and (not filters.status or row["status"] in filters.status)
        and (not filters.queue or row["queue"] in filters.queue)
        and (not filters.tag or not set(filters.tag).isdisjoint(row["tags"]))
        and filters.priority in (None, row["priority"])
        and filters.parent_id in (None, row["parent_id"])
        and (not filters.id or row["task_id"] in filters.id)
        and (not filters.unique_key or row["unique_key"] in filters.unique_key)
        and (filters.created_after is None or row["created_at"] >= filters.created_after)
        and (filters.created_before is None or row["created_at"] < filters.created_before)
        and (not filters.q or _starts_with(row, filters.q))
    )


def _starts_with(row: RowMapping, q: str) -> bool:
    digits = id_digits(q)
    if id_only(q):
        return bool(row["task_id"].hex.startswith(digits))
    return row["type"].startswith(q) or bool(digits and row["task_id"].hex.startswith(digits)) or any(tag.startswith(q) for tag in row["tags"])


def event_of(row: RowMapping, ids: PublicIds = PLAIN) -> Event:
    """A row of :func:`events`, or of :func:`lines`, as the outside world knows it."""
    task = TaskInfo(row["namespace"], row["type"], row["queue"], row["priority"], tuple(row["tags"]), row["status"])
    return Event(f"evt_{ids.hide(row['id'])}", row["event"], row["time"], row["task_id"], row["attempt"], row["data"], task, row.get("outcome") or {})
