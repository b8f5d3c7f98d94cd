"""The life of a notification: which routes want what, and one function for each verb of a delivery.

A delivery row is written by the statement that moved the task (see lifecycle.py). From there it lives like a task, in small:
``pending`` → ``queued`` → ``sending`` → ``delivered``, back to ``pending`` after a failed try, ``dead`` after the last.
A person can have it sent again from either end.
``next_try_at`` is when somebody must look at it again, in every status that is not final: the time of the next try, of a
lost message, or of a sender that died. So one index and one scan find everything that is due.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, RowMapping, text

from taskyard.errors import IllegalTransition, NotFound
from taskyard.settings import Route
from taskyard.storable import to_json


def glob_pattern(types: Sequence[str] | None) -> str | None:
    """Globs over task types (``report.*``) as one regular expression that Postgres understands; None for all.

    ``*`` is any characters, ``?`` is any one, ``[a-c]`` is one of these, ``[!a-c]`` is any but these, all else is itself: as in
    Python's fnmatch. (Its own translation has atomic groups, at which every verb would fail.)
    """
    if types is None:
        return None
    parts = ["".join(_symbol(symbol) for symbol in _SYMBOLS.findall(glob)) for glob in types]
    return f"^({'|'.join(parts)})$"


#: A bracket's first member may be a ``]``. One that is never closed stands for itself.
_SYMBOLS = re.compile(r"\[!?+\]?+[^\]]*\]|.", re.DOTALL)
_MEMBERS = re.compile(r"(.)-(.)|(.)", re.DOTALL)
_NOTHING = "(?!.)."


def _symbol(symbol: str) -> str:
    """One symbol of a glob as a regular expression."""
    if len(symbol) == 1:
        return {"*": ".*", "?": "."}.get(symbol, re.escape(symbol))
    others = symbol[1] == "!"
    ranges = [(low or one, high or one) for low, high, one in _MEMBERS.findall(symbol[1 + others : -1])]
    # A range that runs backwards is empty; to a regular expression it would be an error.
    members = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges if low <= high)
    if not members:
        return "." if others else _NOTHING
    return f"[{'^' if others else ''}{members}]"


def sync_routes(connection: Connection, routes: Sequence[Route]) -> None:
    """Make the configured routes the ones that the verbs see. The dispatcher calls it at its start."""
    connection.execute(text("LOCK TABLE routes IN SHARE ROW EXCLUSIVE MODE"))
    connection.execute(text("DELETE FROM routes WHERE name <> ALL (CAST(:names AS text[]))"), {"names": [r.name for r in routes]})
    for route in routes:
        connection.execute(
            text(
                """INSERT INTO routes (name, notifier, events, type_pattern, queues, tags, min_priority)
                VALUES (:name, :notifier, CAST(:events AS text[]), :pattern, CAST(:queues AS text[]), CAST(:tags AS text[]), :priority)
                ON CONFLICT (name) DO UPDATE SET notifier = EXCLUDED.notifier, events = EXCLUDED.events, type_pattern = EXCLUDED.type_pattern,
                queues = EXCLUDED.queues, tags = EXCLUDED.tags, min_priority = EXCLUDED.min_priority"""
            ),
            {
                "name": route.name,
                "notifier": route.notifier,
                "events": list(route.events),
                "pattern": glob_pattern(route.types),
                "queues": list(route.queues) if route.queues is not None else None,
                "tags": list(route.tags) if route.tags is not None else None,
                "priority": route.min_priority,
            },
        )


_DISPATCH = text(
    """
WITH due AS (
  SELECT id, status = 'sending' AS lost, status = 'sending' AND attempt >= :max_attempts AS spent
  FROM deliveries WHERE next_try_at <= now() ORDER BY next_try_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries d SET
  status = CASE WHEN due.spent THEN 'dead' ELSE 'queued' END,
  next_try_at = CASE WHEN NOT due.spent THEN now() + :lease * interval '1 second' END,
  tries = CASE WHEN due.lost THEN d.tries || jsonb_build_array(jsonb_build_object('attempt', d.attempt, 'time', now(), 'outcome', 'failed',
    'detail', 'the sender was lost', 'duration', round(EXTRACT(epoch FROM now() - d.updated_at), 4))) ELSE d.tries END,
  updated_at = now()
FROM due WHERE d.id = due.id RETURNING d.id, d.notifier, d.status"""
)


class Due(NamedTuple):
    """A delivery that was due. ``dead`` says that it stays unsent: its sender was lost at the last try."""

    id: int
    notifier: str
    dead: bool


def dispatch(connection: Connection, limit: int, lease: float, max_attempts: int) -> list[Due]:
    """Mark due deliveries as queued, or as dead. Publish the queued ones after the commit.

    ``lease`` is the seconds after which one that nobody took is due again. A try whose sender was lost counts as failed.
    """
    rows = connection.execute(_DISPATCH, {"limit": limit, "lease": lease, "max_attempts": max_attempts})
    return [Due(row.id, row.notifier, row.status == "dead") for row in rows]


def withdraw(connection: Connection, ids: Sequence[int]) -> None:
    """Make queued deliveries due now: their messages could not be published."""
    connection.execute(
        text("UPDATE deliveries SET status = 'pending', next_try_at = now() WHERE id = ANY (CAST(:ids AS bigint[])) AND status = 'queued'"),
        {"ids": list(ids)},
    )


_CLAIM = text(
    """
WITH mine AS (
  UPDATE deliveries SET status = 'sending', attempt = attempt + 1, fence = fence + 1,
    next_try_at = now() + :lease * interval '1 second', updated_at = now()
  WHERE id = ANY (CAST(:ids AS bigint[])) AND status = 'queued'
  RETURNING *
)
SELECT mine.id, mine.route, mine.notifier, mine.attempt, mine.fence, e.id AS event_id, e.type AS event, e.time, e.task_id,
  e.attempt AS task_attempt, e.data, t.namespace, t.type, t.queue, t.priority, t.tags, t.status
FROM mine JOIN events e ON e.id = mine.event_id JOIN tasks t ON t.id = e.task_id"""
)


def claim(connection: Connection, ids: Sequence[int], lease: float) -> list[RowMapping]:
    """Take queued deliveries to send, with their events. ``lease`` (seconds) is longer than a try may take."""
    return list(connection.execute(_CLAIM, {"ids": list(ids), "lease": lease}).mappings())


@dataclass(frozen=True, slots=True)
class Tried:
    """How a try ended: ``delivered``, ``retry`` (after ``delay`` seconds, if tries are left) or ``dead``."""

    id: int
    fence: int
    outcome: Literal["delivered", "retry", "dead"]
    detail: str = ""
    delay: float = 0.0
    duration: float = 0.0


_FINISH = text(
    """
UPDATE deliveries d SET
  status = b.becomes,
  delivered_at = CASE WHEN b.becomes = 'delivered' THEN now() END,
  next_try_at = CASE WHEN b.becomes = 'pending' THEN now() + s.delay * interval '1 second' END,
  tries = d.tries || jsonb_build_array(jsonb_build_object('attempt', d.attempt, 'time', now(), 'outcome',
    CASE s.outcome WHEN 'delivered' THEN 'delivered' ELSE 'failed' END, 'detail', s.detail, 'duration', s.duration)),
  updated_at = now()
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id bigint, fence bigint, outcome text, detail text, delay float8, duration float8)
  JOIN LATERAL (SELECT CASE
    WHEN s.outcome = 'delivered' THEN 'delivered'
    WHEN s.outcome = 'dead' OR (SELECT attempt FROM deliveries WHERE id = s.id) >= :max_attempts THEN 'dead'
    ELSE 'pending' END AS becomes) b ON true
WHERE d.id = s.id AND d.fence = s.fence AND d.status = 'sending'
RETURNING d.id, d.status, d.route"""
)


def finish(connection: Connection, tried: Sequence[Tried], max_attempts: int) -> list[RowMapping]:
    """Record how tries ended. A missing row was stale: another sender has it by now."""
    rows: list[dict[str, Any]] = [
        {"id": t.id, "fence": t.fence, "outcome": t.outcome, "detail": t.detail[:2000], "delay": t.delay, "duration": round(t.duration, 4)} for t in tried
    ]
    return list(connection.execute(_FINISH, {"rows": to_json(rows), "max_attempts": max_attempts}).mappings())


# The fence stays as it is: a sender that was given up long ago must not find its number valid again.
_REDELIVER = text(
    """
WITH moved AS (
  UPDATE deliveries SET status = 'pending', attempt = 0, delivered_at = NULL, next_try_at = now(), updated_at = now()
  WHERE id = :id AND namespace = :namespace AND status IN ('delivered', 'dead')
  RETURNING *
)
SELECT moved.*, e.type AS event FROM moved JOIN events e ON e.id = moved.event_id"""
)


def redeliver(connection: Connection, namespace: str, delivery_id: int) -> RowMapping:
    """Send a delivery again that is dead or was delivered: the same event by the same ids, with fresh attempts. Its tries are kept.

    Raises:
        NotFound: it is not there.
        IllegalTransition: it is on its way.
    """
    values = {"id": delivery_id, "namespace": namespace}
    if row := connection.execute(_REDELIVER, values).mappings().first():
        return row
    status = connection.execute(text("SELECT status FROM deliveries WHERE id = :id AND namespace = :namespace"), values).scalar()
    if status is None:
        raise NotFound(f"There is no delivery {delivery_id} here.")
    # It ended between the two statements: refused once, free the next time.
    raise IllegalTransition("redeliver", status, ("redeliver",) if status in ("delivered", "dead") else (), subject="delivery")
