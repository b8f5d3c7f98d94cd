"""The life of a task: its statuses, the moves between them, and one function for each verb.

Each verb is a plain function over a SQLAlchemy connection. It runs one guarded statement that checks the status (and the
fence, where a worker speaks), moves the rows, writes their history events and the deliveries that routes want, all
together. The caller commits. A row that somebody else moved first is not touched: it is missing from the answer.

Verbs of machines take many tasks at once, as JSON rows, so that callers can share a statement and a commit.

A statement that moves several rows locks them first, ordered by id, in a CTE of its own; every SELECT between that lock and the
UPDATE is MATERIALIZED. PostgreSQL re-checks a row that it had to wait for with a plan of its own, which runs inlined queries again
on the old snapshot: without MATERIALIZED, other rows of the statement get lost (tests/core/test_locked_rows.py).

===========  =========================================================  ==============================================
status       who enters                                                 who leaves
===========  =========================================================  ==============================================
scheduled    submit, update (``run_at`` ahead), finish (back-off)       dispatcher when due; hold, cancel, expire
pending      submit, promote, release, retry, reap, claim (stepped      dispatch; hold, cancel, expire
             back or parked), hand-back at a worker's stop
queued       dispatch                                                   claim; dispatch again if the message was lost
running      claim (fence and attempt grow by one)                      finish; reap (worker silent, or task overdue)
held         hold                                                       release, cancel, expire
succeeded    finish                                                     nobody
failed       finish, reap (lost too often)                              a person's retry
cancelled    cancel, finish                                             a person's retry
expired      expire                                                     a person's retry
===========  =========================================================  ==============================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pydantic_core
from sqlalchemy import Connection, RowMapping, TextClause, text
from sqlalchemy.exc import IntegrityError

from taskyard import broker_queues, system
from taskyard.channels import ENDED, announce
from taskyard.database_errors import UNIQUE_KEY, duplicate_of
from taskyard.errors import IllegalTransition, NotFound, UniqueConflict, VersionConflict
from taskyard.records import LANES, Finished, NewTask
from taskyard.routes import WANTS
from taskyard.settings import SUBSCRIBED
from taskyard.statuses import PERSONAL_VERBS as PERSONAL_VERBS
from taskyard.statuses import TERMINAL
from taskyard.statuses import Status as Status
from taskyard.storable import to_json
from taskyard.system import SystemEvent

#: Which statuses a verb leaves from, and where it may lead. The picture in docs/lifecycle.md is tested against this.
TRANSITIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "promote": {"scheduled": ("pending",), "pending": ("pending",)},
    "dispatch": {"pending": ("queued",), "queued": ("queued",)},
    "withdraw": {"queued": ("pending",)},
    "claim": {"queued": ("running", "pending"), "pending": ("running", "pending")},
    "finish": {"running": ("succeeded", "failed", "cancelled", "scheduled", "pending")},
    "reap": {"running": ("pending", "failed", "cancelled")},
    "expire": dict.fromkeys(("scheduled", "pending", "queued", "held"), ("expired",)),
    "cancel": {**dict.fromkeys(("scheduled", "pending", "queued", "held"), ("cancelled",)), "running": ("running",)},
    "hold": dict.fromkeys(("scheduled", "pending", "queued"), ("held",)),
    "release": {"held": ("pending", "scheduled")},
    "retry": dict.fromkeys(("failed", "cancelled", "expired"), ("pending",)),
    "update": {
        "scheduled": ("scheduled", "pending"),
        "pending": ("pending", "scheduled"),
        "queued": ("queued", "scheduled"),
        "held": ("held",),
        "running": ("running",),
    },
}


def allowed_verbs(status: str) -> tuple[str, ...]:
    """What a person may do with a task in this status."""
    return tuple(verb for verb in PERSONAL_VERBS if status in TRANSITIONS[verb])


def becomes(verb: str, status: str, *, ahead: bool = False, stopping: bool = False) -> str | None:
    """What a person's verb makes of a task, None if it leaves it alone. ``ahead``: its run_at is yet to come. ``stopping``: it was asked to stop."""
    leads_to = TRANSITIONS[verb].get(status)
    if leads_to is None or (verb == "cancel" and stopping):
        return None
    return "scheduled" if verb == "release" and ahead else leads_to[0]


# Every verb names its moved rows `moved`, with these columns and `event`, `data`. This tail writes the history and what
# routes want of it. A moved row whose `event` is NULL leaves no trace. An event's id is drawn before it is written: a join
# of what was written with what was moved is a nested loop (Postgres expects one row of a CTE), 32 of 41 ms for 200 tasks.
_TASK = "t.id, t.namespace, t.type, t.queue, t.lane, t.priority, t.tags, t.attempt, t.fence, t.status, t.version, t.awaited, t.subscribed"


# What a route with digests wants waits for the dispatcher to fold it (digests.py). Only a task that says so has subscriptions: OFFSET keeps
# PostgreSQL from reading them all, to join them with nothing.
def _tail(subscriptions: str = "subscriptions") -> str:
    return f"""
, told AS MATERIALIZED (
  SELECT nextval('events_id_seq') AS event_id, *,
    CASE WHEN awaited AND status IN ({", ".join(f"'{status}'" for status in TERMINAL)}) THEN pg_notify('{ENDED}', id::text) END AS woken
  FROM moved WHERE event IS NOT NULL
), recorded AS (
  INSERT INTO events (id, task_id, namespace, type, attempt, data) OVERRIDING SYSTEM VALUE
  SELECT event_id, id, namespace, event, attempt, data FROM told
), wanted AS MATERIALIZED (
  SELECT told.event_id, told.namespace, told.id, told.event, told.type, r.name AS route, r.notifier, r.every IS NOT NULL AS folds
  FROM told JOIN routes r ON {WANTS}
), announced AS (
  INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event)
  SELECT event_id, namespace, id, route, notifier, event FROM wanted WHERE NOT folds
  UNION ALL
  SELECT told.event_id, told.namespace, told.id, '{SUBSCRIBED}' || s.n, s.notifier, told.event
  FROM told CROSS JOIN LATERAL (
    SELECT n, notifier FROM {subscriptions} WHERE task_id = told.id AND told.event = ANY (events) AND ended_at IS NULL OFFSET 0) s
  WHERE told.subscribed
), folded AS (
  INSERT INTO digest_items (route, event_id, event, type) SELECT route, event_id, event, type FROM wanted WHERE folds
)
"""


_TAIL = _tail()

# --- submit -----------------------------------------------------------------------------------------------------------


# Two submits wait for each other's keys, so all insert them in one order: all idempotency keys, then all unique ones. (The sort
# reads all of its input first, and with it all of ``replayed``.)
def _submit(*, keys: str = "", guard: str = "", notify: bool = False) -> TextClause:
    return text(
        f"""
WITH {keys}moved AS (
  INSERT INTO tasks AS t (id, namespace, type, payload, queue, lane, priority, timeout, max_attempts, tags, metadata,
    unique_key, parent_id, awaited, expires_at, run_at, next_run_at, status{", subscribed" if notify else ""})
  SELECT s.id, s.namespace, s.type, COALESCE(s.payload, 'null'), s.queue, s.lane, s.priority, s.timeout, s.max_attempts, s.tags, s.metadata,
    s.unique_key, s.parent_id, s.awaited, s.expires_at, d.due, CASE WHEN d.due > now() THEN d.due END,
    CASE WHEN d.due > now() THEN 'scheduled' ELSE 'pending' END{", s.notify IS NOT NULL" if notify else ""}
  FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id uuid, namespace text, type text, payload jsonb, queue text, lane text,
    priority smallint, timeout float8, max_attempts int, tags text[], metadata jsonb, unique_key text, parent_id uuid,
    awaited bool, expires_at timestamptz, run_at timestamptz, delay float8{", notify jsonb" if notify else ""})
  CROSS JOIN LATERAL (SELECT COALESCE(s.run_at, now() + s.delay * interval '1 second') AS due) d
  {guard}ORDER BY s.unique_key, s.id
  ON CONFLICT DO NOTHING
  RETURNING {_TASK}, t.run_at, t.next_run_at, t.created_at, 'task.submitted' AS event, '{{}}'::jsonb AS data
)"""
        + (_SUBSCRIBE + _tail("subscribed") if notify else _TAIL)
        + "SELECT id, type, queue, lane, status, run_at, next_run_at, created_at FROM moved"
    )


# A statement does not see what it has written: its own event goes to the rows that come back.
_SUBSCRIBE = """
, subscribed AS (
  INSERT INTO subscriptions (task_id, n, notifier, events, options)
  SELECT moved.id, asked.n - 1, asked.wish ->> 'notifier', ARRAY(SELECT jsonb_array_elements_text(asked.wish -> 'events')), asked.wish -> 'options'
  FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id uuid, notify jsonb) JOIN moved ON moved.id = s.id
    CROSS JOIN LATERAL jsonb_array_elements(s.notify) WITH ORDINALITY AS asked(wish, n)
  RETURNING task_id, n, notifier, events, ended_at
)"""
_KEYS = """given AS (
  SELECT * FROM jsonb_to_recordset(CAST(:keys AS jsonb)) AS k(namespace text, key text, fingerprint text, task_ids uuid[])
), keyed AS (
  INSERT INTO idempotency_keys (namespace, key, fingerprint, task_ids) SELECT * FROM given ORDER BY namespace, key
  ON CONFLICT DO NOTHING RETURNING task_ids
), replayed AS (
  SELECT unnest(task_ids) AS id FROM given EXCEPT SELECT unnest(task_ids) FROM keyed
), """
_NEW = "WHERE s.id NOT IN (SELECT id FROM replayed) "
#: By: are there idempotency keys, are there subscriptions.
_SUBMITS = {
    (False, False): _submit(),
    (False, True): _submit(notify=True),
    (True, False): _submit(keys=_KEYS, guard=_NEW),
    (True, True): _submit(keys=_KEYS, guard=_NEW, notify=True),
}


def submit(connection: Connection, new: Sequence[NewTask], keys: Sequence[Mapping[str, Any]] = ()) -> dict[UUID, RowMapping]:
    """Insert tasks; answers what the database decided of each.

    ``keys`` are rows of :meth:`taskyard.idempotency.IdempotencyKey.row`, with the ids of the tasks that each is for. A missing id
    means that its key was used before, that a live task has its unique_key, or that the id itself is there already. In the latter
    two cases its key is written all the same: the caller rolls back.

    A child of a run keeps its id over a retried commit, so "already there" is success for whoever asks twice.
    """
    # Three times as fast as json.dumps. What is submitted was looked through: it has no NaN, which this one would write.
    values = {"rows": pydantic_core.to_json([task.row() for task in new]).decode()}
    statement = _SUBMITS[bool(keys), any(task.notify for task in new)]
    rows = connection.execute(statement, values | {"keys": to_json(list(keys))} if keys else values).mappings()
    return {row["id"]: row for row in rows}


def live_with_unique_key(connection: Connection, namespace: str, unique_key: str) -> UUID | None:
    """The live task that holds a unique_key."""
    return unique_key_holders(connection, namespace, [unique_key]).get(unique_key)


def unique_key_holders(connection: Connection, namespace: str, unique_keys: Iterable[str]) -> dict[str, UUID]:
    """The live task that holds each of these unique_keys; one that nobody holds is missing."""
    found = connection.execute(
        text("SELECT unique_key, id FROM tasks WHERE namespace = :namespace AND unique_key = ANY (CAST(:keys AS text[])) AND ended IS NULL"),
        {"namespace": namespace, "keys": list(unique_keys)},
    )
    return {row.unique_key: row.id for row in found}


# --- the dispatcher's verbs ---------------------------------------------------------------------------------------------

_PROMOTE = text(
    """
WITH due AS MATERIALIZED (
  SELECT id FROM tasks WHERE next_run_at <= now() AND status IN ('scheduled', 'pending')
  ORDER BY next_run_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET status = 'pending', next_run_at = NULL, updated_at = now(), version = version + 1
FROM due WHERE t.id = due.id RETURNING t.queue, t.lane"""
)


def promote(connection: Connection, limit: int = 1000) -> list[tuple[str, str]]:
    """Put due tasks in line; answers the (queue, lane) of each."""
    return [(row.queue, row.lane) for row in connection.execute(_PROMOTE, {"limit": limit})]


# Stale queued rows are dispatched again in the same breath: that is the sweep. They stand at the head of the line, where
# this statement passes anyway, so finding them costs nothing.
_READY = """queue = :queue AND lane = :lane AND in_line
    AND (status = 'pending' OR (status = 'queued' AND queued_at < now() - :stale * interval '1 second'))
    AND (expires_at IS NULL OR expires_at > now())
    AND NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = :queue AND q.paused_at IS NOT NULL)"""
# The last row, without an id, says that a ready task's row was locked. It is only looked for where room was left: a look at the head
# of the line without locks, which stops at the first such task.
_DISPATCH = text(
    f"""
WITH ready AS MATERIALIZED (
  SELECT id, status FROM tasks
  WHERE {_READY}
  ORDER BY priority DESC, id LIMIT :room FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE tasks t SET status = 'queued', queued_at = now(), updated_at = now(), version = version + 1
  FROM ready WHERE t.id = ready.id
  RETURNING t.id, t.type, t.priority, ready.status = 'queued' AS swept
)
SELECT id, type, priority, swept FROM moved
UNION ALL
SELECT NULL, NULL, NULL, NULL WHERE (SELECT count(*) FROM ready) < :room
  AND (SELECT id FROM tasks WHERE {_READY} AND id NOT IN (SELECT id FROM ready) ORDER BY priority DESC, id LIMIT 1) IS NOT NULL
ORDER BY priority DESC NULLS LAST, id"""
)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a broker message says: this task may be ready. ``swept`` marks one that is sent again."""

    id: UUID
    type: str
    priority: int
    swept: bool = False


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The tasks that a dispatch marked as queued, most urgent first. ``skipped``: it passed over a ready task, because another transaction
    holds its row; that transaction may leave it ready without telling anybody.
    """

    hints: Sequence[Hint]
    skipped: bool


def dispatch(connection: Connection, queue: str, lane: str, room: int, stale: float) -> Dispatched:
    """Mark the first ``room`` ready tasks of a queue's lane as queued. Publish their hints after the commit.

    Tasks queued longer than ``stale`` seconds ago count as ready: their message was lost.
    """
    rows = connection.execute(_DISPATCH, {"queue": queue, "lane": lane, "room": room, "stale": stale}).all()
    hints = [Hint(*row) for row in rows if row.id is not None]
    return Dispatched(hints, skipped=len(hints) < len(rows))


_WITHDRAW = text(
    """
WITH queued AS MATERIALIZED (
  SELECT id FROM tasks WHERE id = ANY (CAST(:ids AS uuid[])) AND status = 'queued' ORDER BY id FOR UPDATE
)
UPDATE tasks t SET status = 'pending', queued_at = NULL, updated_at = now(), version = version + 1 FROM queued WHERE t.id = queued.id"""
)


def withdraw(connection: Connection, ids: Iterable[UUID]) -> int:
    """Put queued tasks back in line: their messages could not be published, or a worker has no room for them."""
    return connection.execute(_WITHDRAW, {"ids": list(ids)}).rowcount


_EXPIRE = text(
    f"""
WITH due AS MATERIALIZED (
  SELECT id FROM tasks
  WHERE expires_at <= now() AND expires_at IS NOT NULL AND ended IS NULL AND status IN ('scheduled', 'pending', 'queued', 'held')
  ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE tasks t SET status = 'expired', finished_at = now(), next_run_at = NULL, updated_at = now(), version = version + 1
  FROM due WHERE t.id = due.id
  RETURNING {_TASK}, 'task.expired' AS event, '{{}}'::jsonb AS data
)"""
    + _TAIL
    + "SELECT id, type, queue, status FROM moved"
)


def expire(connection: Connection, limit: int = 1000) -> list[RowMapping]:
    """End the tasks whose ``expires_at`` has passed before they ran."""
    return list(connection.execute(_EXPIRE, {"limit": limit}).mappings())


# A lost run that will run again gives its attempt back: lost runs are counted by themselves and have a cap of their own (rule 6).
_LOSE = """
  status = CASE WHEN t.lost + 1 > :max_lost THEN 'failed' WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled' ELSE 'pending' END,
  finished_at = CASE WHEN t.lost + 1 > :max_lost OR t.cancel_requested_at IS NOT NULL THEN now() END,
  error = CASE WHEN t.lost + 1 > :max_lost THEN jsonb_build_object('code', 'worker-lost', 'message',
    format('The worker was lost %s times while it ran this task.', t.lost + 1)) ELSE t.error END,
  lost = t.lost + 1, attempt = t.attempt - CASE WHEN t.lost + 1 > :max_lost OR t.cancel_requested_at IS NOT NULL THEN 0 ELSE 1 END"""

# Locks the silent workers' rows, which claims share. Only the next statement's snapshot surely has every claim that was
# committed before the lock was ours: in one statement, a claim in between would be left running for ever.
_SILENT = text("SELECT id, name FROM workers WHERE beat_at < now() - :silence * interval '1 second' ORDER BY id FOR UPDATE SKIP LOCKED")
_REAP = text(
    f"""
WITH dead AS (
  DELETE FROM workers WHERE id = ANY (CAST(:workers AS uuid[])) RETURNING id, name
), orphaned AS MATERIALIZED (
  SELECT t.id, dead.id AS worker_id, dead.name FROM tasks t JOIN dead ON dead.id = t.worker_id
  WHERE t.in_line AND t.status = 'running' ORDER BY t.id FOR UPDATE OF t
), moved AS (
  UPDATE tasks t SET {_LOSE}, worker_id = NULL, queued_at = NULL, updated_at = now(), version = t.version + 1
  FROM orphaned WHERE t.id = orphaned.id
  RETURNING {_TASK}, orphaned.worker_id, CASE t.status WHEN 'failed' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' ELSE 'task.lost' END AS event,
    jsonb_strip_nulls(jsonb_build_object('worker', orphaned.name, 'reason', 'worker fell silent', 'fence', t.fence, 'lost', t.lost,
      'error', CASE WHEN t.status = 'failed' THEN t.error END)) AS data
)"""
    + _TAIL
    + "SELECT id, type, queue, lane, status, attempt, fence, worker_id FROM moved"
)


def reap(connection: Connection, silence: float, max_lost: int) -> list[RowMapping]:
    """Forget workers that were silent for ``silence`` seconds, and put what they ran back in line.

    A worker's row is locked here and by its claims, so no claim can slip in between.
    """
    silent = connection.execute(_SILENT, {"silence": silence}).all()
    if not silent:
        return []
    lost = list(connection.execute(_REAP, {"workers": [worker.id for worker in silent], "max_lost": max_lost}).mappings())
    ran = Counter(str(row["worker_id"]) for row in lost)
    system.tell(
        connection,
        [SystemEvent("worker.lost", {"worker": w.name, "worker_id": str(w.id), "silence_seconds": silence, "tasks": ran[str(w.id)]}) for w in silent],
    )
    return lost


@dataclass(frozen=True, slots=True)
class OverduePage:
    """Tasks of a page of live ones that are overdue, and where the next page begins; ``last`` is None after the last one."""

    ids: list[UUID]
    last: tuple[str, UUID] | None


# A machine that sleeps stops its runs and their timers, and not the database's clock.
_IS_OVERDUE = """status = 'running' AND EXTRACT(epoch FROM now() - started_at)
    > timeout + :slack + CASE WHEN started_at < now() - :awake * interval '1 second' THEN CAST(:slept AS float8) ELSE 0 END"""
_OVERDUE = text(
    f"""
WITH page AS MATERIALIZED (
  SELECT namespace, id, {_IS_OVERDUE} AS overdue FROM tasks
  WHERE ended IS NULL AND (namespace, id) > (:namespace, CAST(:after AS uuid)) ORDER BY namespace, id LIMIT :limit
)
SELECT COALESCE(array_agg(id) FILTER (WHERE overdue), '{{}}') AS ids, count(*) AS read,
  (SELECT namespace FROM page ORDER BY namespace DESC, id DESC LIMIT 1) AS namespace, (SELECT id FROM page ORDER BY namespace DESC, id DESC LIMIT 1) AS last
FROM page"""
)
_REAP_OVERDUE = text(
    f"""
WITH stuck AS MATERIALIZED (
  SELECT id, worker_id FROM tasks WHERE id = ANY (CAST(:ids AS uuid[])) AND {_IS_OVERDUE} ORDER BY id FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE tasks t SET {_LOSE}, worker_id = NULL, queued_at = NULL, updated_at = now(), version = t.version + 1
  FROM stuck LEFT JOIN workers w ON w.id = stuck.worker_id WHERE t.id = stuck.id
  RETURNING {_TASK}, stuck.worker_id, CASE t.status WHEN 'failed' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' ELSE 'task.lost' END AS event,
    jsonb_strip_nulls(jsonb_build_object('worker', w.name, 'reason', 'its worker had not ended it long after its timeout', 'fence', t.fence,
      'lost', t.lost, 'error', CASE WHEN t.status = 'failed' THEN t.error END)) AS data
)"""
    + _TAIL
    + "SELECT id, type, queue, lane, status, attempt, fence, worker_id FROM moved"
)


def overdue(connection: Connection, after: tuple[str, UUID], slack: float, limit: int, slept: float = 0.0, awake: float = 0.0) -> OverduePage:
    """Which of the next ``limit`` live tasks, by (namespace, id), run ``slack`` seconds past their timeout or longer.

    Those that ran already ``awake`` seconds ago have ``slept`` seconds more: this machine slept so long until then.
    """
    values = {"namespace": after[0], "after": after[1], "slack": slack, "limit": limit, "slept": slept, "awake": awake}
    row = connection.execute(_OVERDUE, values).one()
    return OverduePage(list(row.ids), (row.namespace, row.last) if row.read == limit else None)


def reap_overdue(connection: Connection, ids: Sequence[UUID], slack: float, max_lost: int, slept: float = 0.0, awake: float = 0.0) -> list[RowMapping]:
    """Put those of these tasks back in line that are still overdue, as lost: whether they had any effect, nobody knows. See :func:`overdue`."""
    values = {"ids": list(ids), "slack": slack, "max_lost": max_lost, "slept": slept, "awake": awake}
    return list(connection.execute(_REAP_OVERDUE, values).mappings())


# --- the worker's verbs -------------------------------------------------------------------------------------------------


def register_worker(connection: Connection, worker: UUID, name: str, queues: Sequence[str], slots: Mapping[str, int], host: str | None = None) -> None:
    """Make a worker known, and wake dispatchers for its queues: what waits there has a worker now. It may claim from now on, and must beat.

    Twice is a beat: the first commit's answer may have been lost.
    """
    connection.execute(
        text(
            "INSERT INTO workers (id, name, queues, slots, host, progressed_at) "
            "VALUES (:id, :name, CAST(:queues AS text[]), CAST(:slots AS jsonb), :host, now()) ON CONFLICT (id) DO UPDATE SET beat_at = now()"
        ),
        {"id": worker, "name": name, "queues": list(queues), "slots": to_json(dict(slots)), "host": host},
    )
    broker_queues.note_served(connection, queues)
    announce(connection, [(queue, lane) for queue in queues for lane in LANES])


_BEAT = text(
    """
UPDATE workers SET beat_at = now(), pace = CAST(:pace AS jsonb), busy = CAST(:busy AS jsonb),
  progressed_at = CASE WHEN CAST(:idle AS float8) IS NULL THEN progressed_at ELSE now() - :idle * interval '1 second' END
WHERE id = :id"""
)


def beat(
    connection: Connection,
    worker: UUID,
    pace: Mapping[str, float] | None = None,
    busy: Mapping[str, int] | None = None,
    idle: float | None = None,
) -> bool:
    """Say that a worker lives, on the database's clock, and its ``pace``: the seconds that a task of each type takes. ``busy`` has the slots
    of each lane that runs have taken, ``idle`` the seconds since its last claim or recorded end.

    False: it was given up as lost, and its tasks are others' now.
    """
    values = {"id": worker, "pace": to_json(dict(pace or {})), "busy": to_json(dict(busy or {})), "idle": idle}
    return connection.execute(_BEAT, values).rowcount == 1


def lock_worker(connection: Connection, worker: UUID) -> None:
    """Keep the reaper off a worker until the commit, or wait for a reap that is under way.

    A transaction that will need this lock (a claim, a beat) and tasks' locks takes this one first, in the reaper's order.
    """
    connection.execute(text("SELECT id FROM workers WHERE id = :id FOR KEY SHARE"), {"id": worker})


def unregister_worker(connection: Connection, worker: UUID) -> None:
    """Forget a worker that stops. One that has not handed back all that it ran stays, for the reaper to find."""
    runs = "SELECT 1 FROM tasks WHERE in_line AND status = 'running' AND worker_id = :id"
    connection.execute(text(f"DELETE FROM workers WHERE id = :id AND NOT EXISTS ({runs})"), {"id": worker})


def cancel_requests(connection: Connection, ids: Iterable[UUID]) -> list[UUID]:
    """Which of these running tasks were asked to stop."""
    statement = text("SELECT id FROM tasks WHERE id = ANY (CAST(:ids AS uuid[])) AND status = 'running' AND cancel_requested_at IS NOT NULL")
    return list(connection.execute(statement, {"ids": list(ids)}).scalars())


# A hint is worth one run, not one task: if something more urgent waits in the same line, that is run, and the hint's own
# task steps back in line. So priorities hold even against what the broker already has in another order. A task that is still
# pending has had a direct hint.
_CLAIM = text(
    f"""
WITH me AS MATERIALIZED (
  SELECT id, name FROM workers WHERE id = :worker FOR KEY SHARE
), hinted AS MATERIALIZED (
  SELECT id, type, priority, expires_at, status FROM tasks
  WHERE id = ANY (CAST(:ids AS uuid[])) AND in_line AND status IN ('pending', 'queued') AND queue = :queue AND lane = :lane
    AND EXISTS (SELECT 1 FROM me)
  ORDER BY id FOR UPDATE
), better AS MATERIALIZED (
  SELECT id, priority FROM tasks
  WHERE queue = :queue AND lane = :lane AND in_line AND status IN ('pending', 'queued')
    AND priority > (SELECT min(priority) FROM hinted)
    AND type = ANY (CAST(:types AS text[])) AND (expires_at IS NULL OR expires_at > now())
  ORDER BY priority DESC, id LIMIT :slots FOR UPDATE SKIP LOCKED
), taken AS MATERIALIZED (
  SELECT id FROM (
    SELECT id, priority FROM hinted WHERE type = ANY (CAST(:types AS text[])) AND (expires_at IS NULL OR expires_at > now())
    UNION SELECT id, priority FROM better) AS candidate
  WHERE NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = :queue AND q.paused_at IS NOT NULL)
  ORDER BY priority DESC, id LIMIT :slots
), chosen AS MATERIALIZED (
  SELECT id, true AS run, false AS unknown FROM taken
  UNION ALL
  SELECT id, false, unknown FROM (SELECT *, type <> ALL (CAST(:types AS text[])) AS unknown FROM hinted) AS passed_over
  WHERE id NOT IN (SELECT id FROM taken) AND (status = 'queued' OR unknown)
), moved AS (
  UPDATE tasks t SET
    status = CASE WHEN chosen.run THEN 'running' ELSE 'pending' END,
    fence = t.fence + CASE WHEN chosen.run THEN 1 ELSE 0 END,
    attempt = t.attempt + CASE WHEN chosen.run THEN 1 ELSE 0 END,
    worker_id = CASE WHEN chosen.run THEN me.id END,
    started_at = CASE WHEN chosen.run THEN clock_timestamp() ELSE t.started_at END,
    queued_at = CASE WHEN chosen.run THEN COALESCE(t.queued_at, now()) END,
    next_run_at = CASE WHEN chosen.unknown THEN now() + :park_delay * interval '1 second' END,
    progress = CASE WHEN chosen.run THEN NULL ELSE t.progress END,
    updated_at = now(), version = t.version + 1
  FROM chosen, me WHERE t.id = chosen.id AND t.status IN ('pending', 'queued')
  RETURNING {_TASK}, t.parent_id, t.lost, t.timeout, t.max_attempts, t.metadata::text AS metadata, chosen.unknown,
    EXTRACT(epoch FROM t.started_at)::float8 AS started,
    CASE WHEN chosen.run AND t.fence = 1 THEN EXTRACT(epoch FROM t.started_at - GREATEST(t.created_at, t.run_at))::float8 END AS waited,
    CASE WHEN chosen.run THEN t.payload::text END AS payload,
    CASE WHEN chosen.run THEN 'task.started' WHEN chosen.unknown THEN 'task.parked' END AS event,
    CASE WHEN chosen.run THEN jsonb_build_object('worker', me.name, 'fence', t.fence)
      ELSE jsonb_build_object('reason', format('worker %s has no handler for %s', me.name, t.type), 'type', t.type) END AS data
)"""
    + _TAIL
    + """SELECT id, namespace, type, parent_id, queue, lane, priority, tags, attempt, fence, status, lost, timeout, max_attempts, metadata, unknown,
  started, waited, payload
FROM moved ORDER BY priority DESC, id"""
)


def claim(
    connection: Connection,
    worker: UUID,
    queue: str,
    lane: str,
    ids: Sequence[UUID],
    types: Sequence[str],
    park_delay: float,
) -> list[RowMapping]:
    """Take up to ``len(ids)`` tasks to run: the hinted ones, or more urgent ones that wait in the same line.

    ``started`` is in seconds since the epoch, ``waited`` the seconds from ready to a first start, None for any other. ``payload`` and
    ``metadata`` are JSON text: only the process that runs the task reads them.

    Only rows whose ``status`` is ``running`` in the answer are this worker's; the others stepped back in line or, if this
    worker has no handler for their type, were parked. Ids that match nothing (repeated, forged or late messages) are
    missing, and so are tasks that had only a direct hint and stay where they are in line.
    """
    values = {"worker": worker, "queue": queue, "lane": lane, "ids": list(ids), "slots": len(ids), "types": list(types), "park_delay": park_delay}
    return list(connection.execute(_CLAIM, values).mappings().all())


_FINISH = text(
    f"""
WITH said AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id uuid, fence bigint, outcome text, result text, error jsonb, delay float8,
    reason text)
), decided AS MATERIALIZED (
  SELECT said.*, clock_timestamp() AS at, CASE
      WHEN said.outcome IN ('succeeded', 'failed', 'cancelled') THEN said.outcome
      WHEN said.outcome = 'lost' AND t.lost + 1 > :max_lost THEN 'failed'
      WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled'
      WHEN said.outcome = 'retry' AND t.attempt >= t.max_attempts THEN 'failed'
      WHEN said.outcome = 'retry' AND said.delay > 0 THEN 'scheduled'
      ELSE 'pending' END AS becomes
  FROM said JOIN tasks t ON t.id = said.id AND t.fence = said.fence AND t.status = 'running'
  ORDER BY said.id FOR UPDATE OF t
), moved AS (
  UPDATE tasks t SET
    status = d.becomes,
    finished_at = CASE WHEN d.becomes IN ('succeeded', 'failed', 'cancelled') THEN d.at END,
    next_run_at = CASE WHEN d.becomes = 'scheduled' OR (d.becomes = 'pending' AND d.outcome = 'parked') THEN d.at + d.delay * interval '1 second' END,
    result = d.result::jsonb,
    error = CASE WHEN d.becomes = 'succeeded' THEN NULL
      WHEN d.outcome = 'lost' AND d.becomes = 'failed' THEN jsonb_build_object('message', 'The process was lost while it ran this task.')
        || COALESCE(d.error, '{{}}') || jsonb_build_object('code', 'worker-lost')
      ELSE COALESCE(d.error, t.error) END,
    lost = t.lost + CASE WHEN d.outcome = 'lost' THEN 1 ELSE 0 END,
    attempt = t.attempt - CASE WHEN d.outcome IN ('lost', 'returned', 'parked') AND d.becomes = 'pending' THEN 1 ELSE 0 END,
    worker_id = NULL, queued_at = NULL, updated_at = d.at, version = t.version + 1
  FROM decided d WHERE t.id = d.id AND t.fence = d.fence AND t.status = 'running'
  RETURNING {_TASK}, CASE
      WHEN d.becomes IN ('succeeded', 'failed', 'cancelled') THEN 'task.' || d.becomes
      WHEN d.outcome = 'lost' THEN 'task.lost'
      WHEN d.outcome = 'returned' THEN 'task.released'
      WHEN d.outcome = 'parked' THEN 'task.parked'
      ELSE 'task.retrying' END AS event,
    jsonb_strip_nulls(jsonb_build_object(
      'error', CASE WHEN d.becomes = 'succeeded' THEN NULL WHEN d.becomes = 'failed' THEN t.error ELSE d.error END,
      'delay', CASE WHEN d.becomes = 'scheduled' THEN d.delay END,
      'fence', CASE WHEN d.outcome = 'lost' THEN t.fence END,
      'lost', CASE WHEN d.outcome = 'lost' THEN t.lost END,
      'type', CASE WHEN d.outcome = 'parked' THEN t.type END,
      'reason', CASE d.outcome WHEN 'returned' THEN COALESCE(d.reason, 'worker stopping') WHEN 'parked' THEN d.reason
        WHEN 'lost' THEN d.error ->> 'message' END)) AS data,
    EXTRACT(epoch FROM clock_timestamp() - t.started_at)::float8 AS ran
)"""
    + _TAIL
    + "SELECT id, type, queue, lane, namespace, priority, attempt, fence, status, event, NULLIF(data, '{}') AS data, ran FROM moved"
)


def finish(connection: Connection, finished: Sequence[Finished], max_lost: int) -> list[RowMapping]:
    """Record how runs ended; ``ran`` is the seconds since the claim, ``data`` what its event tells, if anything.

    A missing row was stale: its fence had moved on, or the task was not running any more.

    Success beats a cancel that is still waiting; a retry that would follow a cancel becomes ``cancelled``.
    """
    rows = [f.row() for f in finished]
    return list(connection.execute(_FINISH, {"rows": to_json(rows), "max_lost": max_lost}).mappings().all())


def strays(connection: Connection, worker: UUID, known: Mapping[UUID, int]) -> list[Finished]:
    """What Postgres says this worker runs and the worker does not know of, ready to be handed back with :func:`finish`.

    ``known`` has the fence of each run that it does know of.

    A claim whose commit was answered by a broken connection leaves such tasks: nobody runs them, and no reaper would come.
    """
    statement = text("SELECT id, fence FROM tasks WHERE in_line AND status = 'running' AND worker_id = :worker")
    rows = connection.execute(statement, {"worker": worker})
    return [Finished(row.id, row.fence, "returned") for row in rows if known.get(row.id) != row.fence]


_PROGRESS = text(
    f"""
WITH said AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id uuid, fence bigint, progress jsonb)
), mine AS MATERIALIZED (
  SELECT said.* FROM said JOIN tasks t ON t.id = said.id AND t.fence = said.fence AND t.status = 'running' ORDER BY said.id FOR UPDATE OF t
), moved AS (
  UPDATE tasks t SET progress = mine.progress, updated_at = now(), version = t.version + 1
  FROM mine WHERE t.id = mine.id AND t.fence = mine.fence AND t.status = 'running'
  RETURNING {_TASK}, 'task.progress' AS event, mine.progress AS data
)"""
    + _TAIL
    + "SELECT id FROM moved"
)


def progress(connection: Connection, said: Mapping[tuple[UUID, int], Mapping[str, Any]]) -> list[UUID]:
    """Record how far runs are, by (id, fence)."""
    rows = [{"id": str(id_), "fence": fence, "progress": dict(value)} for (id_, fence), value in said.items()]
    return list(connection.execute(_PROGRESS, {"rows": to_json(rows)}).scalars())


# --- verbs of people ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Verb:
    """A person's verb as a statement for one task, which answers its row, and one for many, which answers what metrics and dispatchers
    want to know of each.
    """

    one: TextClause
    many: TextClause


_HELD = "held AS MATERIALIZED (SELECT id FROM tasks WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE), "


def _verb(moves: str, guard: str, event: str, data: str = "'{}'::jsonb", answer: str = "") -> _Verb:
    def statement(which: str, columns: str, *, locked: str = "", held: str = "") -> TextClause:
        return text(
            f"""
WITH {locked}moved AS (
  UPDATE tasks t SET {moves}, updated_at = now(), version = t.version + 1
  {held}WHERE {which} AND t.namespace = :namespace AND {guard}
  RETURNING t.*, {event} AS event, {data} AS data
)"""
            + _TAIL
            + f"SELECT {columns}{answer} FROM moved"
        )

    many = statement("t.id = held.id", "id, type, queue, lane, status", locked=_HELD, held="FROM held ")
    return _Verb(statement("t.id = :id", "*"), many)


# A task that runs is asked first; its worker hears of it by NOTIFY at once, and at its next beat at the latest.
_CANCEL = _verb(
    """status = CASE WHEN t.status = 'running' THEN 'running' ELSE 'cancelled' END,
    finished_at = CASE WHEN t.status = 'running' THEN NULL ELSE now() END,
    next_run_at = NULL, cancel_requested_at = now()""",
    "t.status IN ('scheduled', 'pending', 'queued', 'held', 'running') AND t.cancel_requested_at IS NULL",
    "CASE WHEN t.status = 'running' THEN 'task.cancel_requested' ELSE 'task.cancelled' END",
    answer=", CASE WHEN status = 'running' THEN pg_notify('taskyard_cancel', id::text) END",
)
_HOLD = _verb(
    "status = 'held', next_run_at = NULL, queued_at = NULL",
    "t.status IN ('scheduled', 'pending', 'queued')",
    "'task.held'",
)
_RELEASE = _verb(
    """status = CASE WHEN t.run_at > now() THEN 'scheduled' ELSE 'pending' END,
    next_run_at = CASE WHEN t.run_at > now() THEN t.run_at END""",
    "t.status = 'held'",
    "'task.released'",
)
_RETRY = _verb(
    """status = 'pending', attempt = 0, lost = 0, result = NULL, error = NULL, progress = NULL, finished_at = NULL, next_run_at = NULL,
    queued_at = NULL, cancel_requested_at = NULL, expires_at = CASE WHEN t.expires_at > now() THEN t.expires_at END""",
    "t.status IN ('failed', 'cancelled', 'expired')",
    "'task.retrying'",
    """'{"manual": true}'::jsonb""",
)


def cancel(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    """Cancel a task; one that runs is asked to stop. Asking twice is no error.

    Raises:
        NotFound, IllegalTransition: it is not there; it has ended already.
    """
    if row := connection.execute(_CANCEL.one, {"id": task_id, "namespace": namespace}).mappings().first():
        return row
    current = _current(connection, namespace, task_id)
    if current["status"] == "running":
        return current
    raise _refusal("cancel", current)


def hold(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    """Take a waiting task out of line. Raises NotFound or IllegalTransition."""
    return _move("hold", _HOLD, connection, namespace, task_id)


def release(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    """Put a held task back in line, or back on its schedule. Raises NotFound or IllegalTransition."""
    return _move("release", _RELEASE, connection, namespace, task_id)


def retry(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    """Run an ended task again, with fresh attempts. The fence goes on growing.

    Raises:
        NotFound, IllegalTransition: it is not there; it has not ended, or it succeeded.
        UniqueConflict: a live task has taken its unique_key.
    """
    while True:
        try:
            with connection.begin_nested():
                return _move("retry", _RETRY, connection, namespace, task_id)
        except IntegrityError as error:
            if duplicate_of(error) != UNIQUE_KEY:
                raise
            key = _current(connection, namespace, task_id)["unique_key"]
            # Whoever had the key may have ended between the two statements: then it is free, and there is nobody to name.
            if holder := live_with_unique_key(connection, namespace, key):
                raise UniqueConflict(key, str(holder)) from error


_UPDATE = text(
    """
WITH said AS (
  SELECT c, c ? 'run_at' AS moves, (c ->> 'run_at')::timestamptz AS run_at, (c ->> 'run_at')::timestamptz > now() AS ahead
  FROM (SELECT CAST(:changes AS jsonb) AS c) AS given
), moved AS (
  UPDATE tasks t SET
    priority = CASE WHEN c ? 'priority' THEN (c ->> 'priority')::smallint ELSE t.priority END,
    run_at = CASE WHEN moves THEN said.run_at ELSE t.run_at END,
    next_run_at = CASE WHEN moves AND t.status <> 'held' THEN CASE WHEN ahead THEN said.run_at END ELSE t.next_run_at END,
    status = CASE WHEN ahead AND t.status IN ('scheduled', 'pending', 'queued') THEN 'scheduled'
      WHEN moves AND t.status = 'scheduled' THEN 'pending' ELSE t.status END,
    queued_at = CASE WHEN ahead THEN NULL ELSE t.queued_at END,
    expires_at = CASE WHEN c ? 'expires_at' THEN (c ->> 'expires_at')::timestamptz ELSE t.expires_at END,
    tags = CASE WHEN c ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(c -> 'tags')) ELSE t.tags END,
    metadata = CASE WHEN c ? 'metadata' THEN c -> 'metadata' ELSE t.metadata END,
    updated_at = now(), version = t.version + 1
  FROM said WHERE t.id = :id AND t.namespace = :namespace AND t.status = ANY (CAST(:from AS text[]))
  RETURNING t.*, 'task.updated' AS event, c AS data
)"""
    + _TAIL
    + "SELECT * FROM moved"
)


def update(connection: Connection, namespace: str, task_id: UUID, changes: Mapping[str, Any]) -> RowMapping:
    """Change ``priority``, ``run_at``, ``expires_at`` (while the task waits), ``tags`` or ``metadata`` (while it lives).

    Raises:
        NotFound, IllegalTransition: it is not there; its status does not allow these changes.
    """
    waiting_only = {"priority", "run_at", "expires_at"} & set(changes)
    allowed = [s for s in TRANSITIONS["update"] if s != "running" or not waiting_only]
    values = {"id": task_id, "namespace": namespace, "changes": to_json(dict(changes)), "from": allowed}
    if row := connection.execute(_UPDATE, values).mappings().first():
        return row
    raise _refusal("update", _current(connection, namespace, task_id))


# Skips locked rows: a statement that waits for one row while it holds others can deadlock with a commit of a worker's ledger.
_AWAIT = text(
    """
WITH asked AS MATERIALIZED (
  SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:namespaces AS text[])) AS asked(id, namespace)
), live AS MATERIALIZED (
  SELECT t.id FROM asked JOIN tasks t USING (id, namespace) WHERE t.ended IS NULL AND NOT t.awaited ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
), marked AS (
  UPDATE tasks t SET awaited = true FROM live WHERE t.id = live.id RETURNING t.*
)
SELECT * FROM marked
UNION ALL
SELECT t.* FROM asked JOIN tasks t USING (id, namespace) WHERE t.id NOT IN (SELECT id FROM live)"""
)


def await_ends(connection: Connection, asked: Sequence[tuple[str, UUID]]) -> dict[tuple[str, UUID], RowMapping]:
    """The rows of tasks, by (namespace, id). The transactions that end those that are ``awaited`` in the answer will notify ENDED.

    That is no move: versions stay. A task that is not there is missing. A live one that isn't ``awaited`` in the answer was being moved
    at that moment: ask again soon.
    """
    return {(row["namespace"], row["id"]): row for row in connection.execute(_AWAIT, _these(asked)).mappings()}


_LOOK = text("SELECT t.* FROM unnest(CAST(:ids AS uuid[]), CAST(:namespaces AS text[])) AS asked(id, namespace) JOIN tasks t USING (id, namespace)")


def look_at(connection: Connection, asked: Sequence[tuple[str, UUID]]) -> dict[tuple[str, UUID], RowMapping]:
    """The rows of tasks, by (namespace, id). A task that is not there is missing."""
    return {(row["namespace"], row["id"]): row for row in connection.execute(_LOOK, _these(asked)).mappings()}


def _these(tasks: Sequence[tuple[str, UUID]]) -> dict[str, Any]:
    return {"ids": [id_ for _, id_ in tasks], "namespaces": [namespace for namespace, _ in tasks]}


#: What a person may do with many tasks at once.
BULK_VERBS: Mapping[str, _Verb] = {"cancel": _CANCEL, "hold": _HOLD, "release": _RELEASE, "retry": _RETRY}


def move_many(connection: Connection, verb: str, namespace: str, task_ids: Sequence[UUID]) -> list[RowMapping]:
    """Do one of BULK_VERBS with all of these tasks whose status allows it; answers those that it moved.

    A task whose unique_key a live one has by now is not retried.
    """
    try:
        with connection.begin_nested():
            return list(connection.execute(BULK_VERBS[verb].many, {"ids": list(task_ids), "namespace": namespace}).mappings())
    except IntegrityError as error:
        if duplicate_of(error) != UNIQUE_KEY:
            raise
    moved = []
    for task_id in sorted(task_ids):
        with suppress(NotFound, IllegalTransition, UniqueConflict):
            moved.append(retry(connection, namespace, task_id))
    return moved


def revoke(connection: Connection, anywhere: Sequence[UUID], handed_out: Sequence[UUID]) -> list[RowMapping]:
    """Cancel tasks of all namespaces: for an operator, by way of Celery. Those of ``handed_out`` only while they are queued or running.

    Answers those that were moved.
    """
    found = text(
        "SELECT namespace, array_agg(id) AS ids FROM tasks WHERE ended IS NULL AND (id = ANY (CAST(:anywhere AS uuid[])) "
        "OR (id = ANY (CAST(:handed_out AS uuid[])) AND status IN ('queued', 'running'))) GROUP BY namespace ORDER BY namespace"
    )
    rows = connection.execute(found, {"anywhere": list(anywhere), "handed_out": list(handed_out)}).all()
    return [moved for row in rows for moved in move_many(connection, "cancel", row.namespace, row.ids)]


def expect_version(connection: Connection, namespace: str, task_id: UUID, versions: Sequence[int]) -> None:
    """Let the verb that follows in this transaction find the task at one of these versions.

    Raises:
        NotFound, VersionConflict: it is not there; it has another version.
    """
    statement = text("SELECT version FROM tasks WHERE id = :id AND namespace = :namespace FOR UPDATE")
    version = connection.execute(statement, {"id": task_id, "namespace": namespace}).scalar()
    if version is None:
        raise _missing(task_id)
    if version not in versions:
        raise VersionConflict(version)


def _move(verb: str, how: _Verb, connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    if row := connection.execute(how.one, {"id": task_id, "namespace": namespace}).mappings().first():
        return row
    raise _refusal(verb, _current(connection, namespace, task_id))


def _refusal(verb: str, current: RowMapping) -> IllegalTransition:
    return IllegalTransition(verb, current["status"], allowed_verbs(current["status"]))


def _current(connection: Connection, namespace: str, task_id: UUID) -> RowMapping:
    row = connection.execute(text("SELECT * FROM tasks WHERE id = :id AND namespace = :namespace"), {"id": task_id, "namespace": namespace}).mappings().first()
    if row is None:
        raise _missing(task_id)
    return row


def _missing(task_id: UUID) -> NotFound:
    return NotFound(f"There is no task {task_id} here.")
