"""The read side: tasks and their events. Cursor pages, by index, and nothing that counts a whole table."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, false, func, not_, null, or_, select, text, union_all

from taskyard import cursors, schema_version
from taskyard.errors import InvalidInput, NotFound
from taskyard.ids import PLAIN, PublicIds
from taskyard.tables import LIVE, SCHEMA_REVISION, TERMINAL, events, task_log_totals, task_logs, tasks

#: An id is made before its row: seconds before by a client's request, a whole run before by a handler that submits.
_ID_BEFORE_ROW = timedelta(days=31)
_CLOCKS_APART = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and the cursor of the page after them: None if they are the last."""

    items: Sequence[Row[Any]]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class TaskFilters:
    """Which tasks to list. Different filters must all hold; of several values of one filter, any may.

    ``created_after`` is included, ``created_before`` is not. ``q`` is the start of an id, a type or a tag; what can be nothing but the start
    of an id (see ``id_only``) is looked for as that alone. ``metadata`` has names, each with the values that it may have.
    """

    status: tuple[str, ...] = ()
    type: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    priority: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    parent_id: UUID | None = None
    id: tuple[UUID, ...] = ()
    unique_key: tuple[str, ...] = ()
    metadata: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def identity(self) -> dict[str, Any]:
        """What cursors are bound to. Filters that are newer than cursors are left out where they are empty: pages go on over an upgrade."""
        newer = ("id", "unique_key", "metadata")
        return {name: value for name, value in asdict(self).items() if value or name not in newer}


#: Lists of all namespaces read each one's indexes by itself, up to so many of them.
MOST_BRANCHES = 100
# One step of an index for each namespace, however many tasks it has.
_NAMESPACES = text(
    """
WITH RECURSIVE walk(namespace) AS (
  (SELECT namespace FROM tasks ORDER BY namespace LIMIT 1)
  UNION ALL
  SELECT (SELECT t.namespace FROM tasks t WHERE t.namespace > walk.namespace ORDER BY t.namespace LIMIT 1) FROM walk WHERE walk.namespace IS NOT NULL
)
SELECT namespace FROM walk WHERE namespace IS NOT NULL LIMIT :limit"""
)


def within(connection: Connection, column: ColumnElement[str], namespace: str | None) -> list[ColumnElement[bool]]:
    """Disjoint conditions that together mean a namespace, or (None) all of them: every list's index begins with the namespace."""
    if namespace is not None:
        return [column == namespace]
    known = connection.execute(_NAMESPACES, {"limit": MOST_BRANCHES + 1}).scalars().all()
    return [column == one for one in known] if 0 < len(known) <= MOST_BRANCHES else [column.is_not(None)]


def namespace_of_task(connection: Connection, task_id: UUID) -> str | None:
    """The namespace that a task is in; None if there is no such task."""
    found: str | None = connection.execute(select(tasks.c.namespace).where(tasks.c.id == task_id)).scalar()
    return found


def list_tasks(
    connection: Connection, namespace: str | None, filters: TaskFilters, limit: int, cursor: str | None = None, without: Collection[str] = ()
) -> Page:
    """One page of tasks of a namespace, or (None) of all, newest first. Columns that may be null are not read if they are ``without``.

    Raises:
        InvalidInput: the cursor is garbled, or belongs to other filters.
    """
    bound_to = ["tasks", namespace, filters.identity()]
    conditions = _conditions(filters)
    if cursor is not None:
        conditions.append(tasks.c.id < uuid_of(cursors.decode(cursor, bound_to)))
    apart = product(within(connection, tasks.c.namespace, namespace), _branches(filters))
    columns = [null().label(column.name) if column.name in without else column for column in tasks.c]
    branches = [select(*columns).where(*conditions, *each).order_by(tasks.c.id.desc()).limit(limit + 1) for each in apart]
    rows = connection.execute(merged(branches, limit + 1)).all()
    return page_of(rows, limit, lambda row: row.id.bytes, bound_to)


def matching(connection: Connection, namespace: str, filters: TaskFilters, limit: int, before: UUID | None = None) -> list[Row[Any]]:
    """Up to ``limit`` tasks, newest first, from before an id on: ``id``, ``status``, ``ahead`` and ``stopping`` (see lifecycle.becomes).

    What is submitted meanwhile never shows up.
    """
    conditions = [tasks.c.namespace == namespace, *_conditions(filters)]
    if before is not None:
        conditions.append(tasks.c.id < before)
    stopping = tasks.c.cancel_requested_at.is_not(None)
    chosen = (tasks.c.id, tasks.c.status, func.coalesce(tasks.c.run_at > func.now(), false()).label("ahead"), stopping.label("stopping"))
    branches = [select(*chosen).where(*conditions, branch).order_by(tasks.c.id.desc()).limit(limit) for branch in _branches(filters)]
    return list(connection.execute(merged(branches, limit)).all())


def still_matching(connection: Connection, namespace: str, filters: TaskFilters, ids: Sequence[UUID]) -> list[UUID]:
    """Those of ``ids`` that match now, locked: they match until this transaction ends."""
    statement = select(tasks.c.id).where(tasks.c.id.in_(ids), tasks.c.namespace == namespace, *_conditions(filters))
    if filters.parent_id is not None:
        statement = statement.where(tasks.c.parent_id == filters.parent_id)
    if filters.type:
        statement = statement.where(tasks.c.type.in_(filters.type))
    if filters.status:
        statement = statement.where(tasks.c.status.in_(filters.status))
    return list(connection.execute(statement.order_by(tasks.c.id).with_for_update()).scalars())


def merged(branches: list[Select[Any]], limit: int) -> Any:
    """The newest ``limit`` rows of all branches, each of which is newest first, with its own limit."""
    if len(branches) == 1:
        return branches[0]
    every = union_all(*(branch.subquery().select() for branch in branches)).subquery()
    return select(every).order_by(every.c.id.desc()).limit(limit)


def _branches(filters: TaskFilters) -> list[ColumnElement[bool]]:
    """Disjoint conditions, each of which reads one index newest first. A single OR of them would read none."""
    if filters.id:
        return [tasks.c.id.in_(filters.id)]
    if filters.parent_id is not None:
        return [tasks.c.parent_id == filters.parent_id]
    if filters.status:
        ended: list[ColumnElement[bool]] = [tasks.c.ended == status for status in TERMINAL if status in filters.status]
        live = [status for status in LIVE if status in filters.status and status != "held"]
        waiting = [and_(tasks.c.ended.is_(None), tasks.c.status.in_(live))] if live else []
        return ended + waiting + ([held()] if "held" in filters.status else [])
    if filters.type:
        return [tasks.c.type == type_ for type_ in dict.fromkeys(filters.type)]
    return [tasks.c.namespace.is_not(None)]


def held() -> ColumnElement[bool]:
    """``status = 'held'`` in the words of its partial index, which must not mention the status (see tables.py)."""
    return and_(not_(tasks.c.in_line), tasks.c.ended.is_(None), tasks.c.next_run_at.is_(None))


def _conditions(filters: TaskFilters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.type and (filters.status or filters.parent_id or filters.id):
        found.append(tasks.c.type.in_(filters.type))
    if filters.status and (filters.parent_id or filters.id):
        found.append(tasks.c.status.in_(filters.status))
    if filters.parent_id and filters.id:
        found.append(tasks.c.parent_id == filters.parent_id)
    if filters.unique_key:
        found.append(tasks.c.unique_key.in_(filters.unique_key))
    found += [or_(*(tasks.c.metadata.contains({name: value}) for value in values)) for name, values in filters.metadata]
    if filters.queue:
        found.append(tasks.c.queue.in_(filters.queue))
    if filters.tag:
        found.append(tasks.c.tags.overlap(list(filters.tag)))
    if filters.priority is not None:
        found.append(tasks.c.priority == filters.priority)
    # The bounds on the id say nothing new; they let Postgres begin at the right place of an index.
    if filters.created_after is not None:
        found += [tasks.c.created_at >= filters.created_after, tasks.c.id >= first_id(filters.created_after - _ID_BEFORE_ROW)]
    if filters.created_before is not None:
        found += [tasks.c.created_at < filters.created_before, tasks.c.id < first_id(filters.created_before + _CLOCKS_APART)]
    if filters.q:
        found.append(_starts_with(filters.q))
    return found


def first_id(moment: datetime) -> UUID:
    """The least UUIDv7 (RFC 9562, section 5.7) of a millisecond."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


def _starts_with(q: str) -> ColumnElement[bool]:
    if id_only(q):
        return _id_starts_with(id_digits(q))
    tags = func.unnest(tasks.c.tags).table_valued("tag").render_derived()
    in_tags = exists(select(1).select_from(tags).where(func.starts_with(tags.c.tag, q)).correlate(tasks))
    by_id: ColumnElement[bool] = false()
    if digits := id_digits(q):
        by_id = _id_starts_with(digits)
    return or_(by_id, func.starts_with(tasks.c.type, q), in_tags)


def _id_starts_with(digits: str) -> ColumnElement[bool]:
    return tasks.c.id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))


def id_only(q: str) -> bool:
    """Is this the start of an id, and hardly of a type or a tag: more of it than its first group, as ids are written?

    No index finds the starts of tags: to look for those of an old task's id would be to read all that is newer. Ids begin with a 0 until
    the year 2527 (RFC 9562, section 5.7: 48 bits of milliseconds).
    """
    return re.fullmatch(r"0[0-9a-f]{7}-[0-9a-f-]+", q.lower()) is not None and bool(id_digits(q))


def id_digits(q: str) -> str:
    """The hexadecimal digits of an id's start; empty if it is none."""
    digits = q.lower().replace("-", "")
    return digits if re.fullmatch(r"[0-9a-f]{1,32}", digits) else ""


def task(connection: Connection, namespace: str, task_id: UUID) -> Row[Any]:
    """One task.

    Raises:
        NotFound: it is not in this namespace.
    """
    row = connection.execute(select(tasks).where(tasks.c.id == task_id, tasks.c.namespace == namespace)).first()
    if row is None:
        raise NotFound(f"There is no task {task_id} here.")
    return row


def ended_of(connection: Connection, task_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these tasks have ended, or are gone."""
    statement = text(
        "SELECT id FROM unnest(CAST(:ids AS uuid[])) AS asked(id) WHERE NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = asked.id AND ended IS NULL)"
    )
    return list(connection.execute(statement, {"ids": list(task_ids)}).scalars())


def task_events(connection: Connection, namespace: str, task_id: UUID, limit: int, cursor: str | None = None, ids: PublicIds = PLAIN) -> Page:
    """One page of a task's history, oldest first. Raises NotFound, or InvalidInput for a wrong cursor."""
    task(connection, namespace, task_id)
    bound_to = ["events", namespace, task_id]
    query = select(events).where(events.c.task_id == task_id).order_by(events.c.id).limit(limit + 1)
    if cursor is not None:
        query = query.where(events.c.id > ids.reveal(number_of(cursors.decode(cursor, bound_to))))
    return page_of(connection.execute(query).all(), limit, lambda row: ids.hide(row.id).to_bytes(8), bound_to)


@dataclass(frozen=True, slots=True)
class LogPage(Page):
    """Lines of a task's log. ``dropped`` counts those that are not kept any more, or never were."""

    dropped: int


def task_log(
    connection: Connection, namespace: str, task_id: UUID, levels: Sequence[str], limit: int, cursor: str | None = None, ids: PublicIds = PLAIN
) -> LogPage:
    """One page of what a task's handler has logged, oldest first; of some levels, or of all. Raises as :func:`task_events` does."""
    task(connection, namespace, task_id)
    bound_to = ["logs", namespace, task_id, sorted(set(levels))]
    query = select(task_logs).where(task_logs.c.task_id == task_id).order_by(task_logs.c.id).limit(limit + 1)
    if levels:
        query = query.where(task_logs.c.level.in_(levels))
    if cursor is not None:
        query = query.where(task_logs.c.id > ids.reveal(number_of(cursors.decode(cursor, bound_to))))
    found = page_of(connection.execute(query).all(), limit, lambda row: ids.hide(row.id).to_bytes(8), bound_to)
    dropped = connection.execute(select(task_log_totals.c.dropped).where(task_log_totals.c.task_id == task_id)).scalar()
    return LogPage(found.items, found.next_cursor, dropped or 0)


def page_of(rows: Sequence[Row[Any]], limit: int, position: Any, bound_to: Any) -> Page:
    """A page of rows of which one more than ``limit`` was asked for."""
    items = rows[:limit]
    more = len(rows) > limit
    return Page(items, cursors.encode(position(items[-1]), bound_to) if more else None)


def uuid_of(position: bytes) -> UUID:
    """A cursor's position where ids are UUIDs. Raises InvalidInput."""
    if len(position) != 16:
        raise InvalidInput("The cursor is garbled.", [("/cursor", "expected next_cursor of an earlier page, unchanged")])
    return UUID(bytes=position)


def number_of(position: bytes) -> int:
    """A cursor's position where ids are numbers. Raises InvalidInput."""
    if len(position) != 8 or position[0] > 127:
        raise InvalidInput("The cursor is garbled.", [("/cursor", "expected next_cursor of an earlier page, unchanged")])
    return int.from_bytes(position)


def schema_revision(connection: Connection) -> str | None:
    """The revision that migrations brought this database to; None if there is none."""
    return schema_version.revision(connection)


def schema_is_usable(revision: str | None) -> bool:
    """Can this code work on a database at ``revision``? A newer one is fine: migrations come before the code that needs them."""
    return revision is not None and revision >= SCHEMA_REVISION
