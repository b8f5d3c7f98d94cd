"""The life of a notification: one function for each verb of a delivery.

A delivery row is written by the statement that moved the task (see lifecycle.py). From there it lives like a task, in small:
``pending`` → ``queued`` → ``sending`` → ``delivered``, back to ``pending`` after a failed try, ``dead`` after the last.
A person can have it sent again from either end.
``next_try_at`` is when somebody must look at it again, in every status that is not final: the time of the next try, of a
lost message, or of a sender that died. So one index and one scan find everything that is due.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from taskyard import routes, system
from taskyard.errors import IllegalTransition, NotFound
from taskyard.events import NO_TASK, OUTCOME, OUTCOME_URL
from taskyard.ids import PLAIN, PublicIds
from taskyard.settings import SUBSCRIBED
from taskyard.storable import to_json

#: The statuses that nothing moves on by itself.
ENDED = ("delivered", "dead")

_DISPATCH = text(
    f"""
WITH due AS MATERIALIZED (
  SELECT id, route, task_id, attempt, status = 'sending' AS lost, status = 'sending' AND attempt >= :max_attempts AS spent
  FROM deliveries
  WHERE next_try_at <= now() AND (slot_at IS NOT NULL OR route NOT IN (SELECT name FROM routes WHERE gap IS NOT NULL))
  ORDER BY next_try_at LIMIT :limit FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
  SELECT due.*, CASE WHEN r.name IS NOT NULL THEN 'the route is switched off: ' || COALESCE(r.disabled_reason, '')
      WHEN s.n IS NOT NULL THEN 'the subscription has ended' END AS refused,
    due.task_id <> '{NO_TASK}' AND EXISTS (SELECT FROM deliveries e WHERE e.task_id = due.task_id AND e.route = due.route AND e.id < due.id
      AND e.next_try_at IS NOT NULL AND (e.attempt = 0 OR e.status IN ('queued', 'sending'))) AS waits
  FROM due LEFT JOIN routes r ON r.name = due.route AND r.disabled_at IS NOT NULL
    LEFT JOIN subscriptions s ON s.task_id = due.task_id AND '{SUBSCRIBED}' || s.n = due.route AND s.ended_at IS NOT NULL
)
UPDATE deliveries d SET
  status = CASE WHEN j.spent OR j.refused IS NOT NULL THEN 'dead' WHEN j.waits THEN 'pending' ELSE 'queued' END,
  next_try_at = CASE WHEN j.spent OR j.refused IS NOT NULL THEN NULL WHEN j.waits THEN now() + :turn * interval '1 second'
    ELSE now() + :lease * interval '1 second' END,
  tries = CASE WHEN j.lost OR j.refused IS NOT NULL THEN d.tries || jsonb_build_array(jsonb_build_object('attempt', d.attempt, 'time', now(),
    'outcome', 'failed', 'detail', CASE WHEN j.lost THEN 'the sender was lost' ELSE j.refused END,
    'duration', CASE WHEN j.lost THEN round(EXTRACT(epoch FROM now() - d.updated_at), 4) ELSE 0 END)) ELSE d.tries END,
  updated_at = now()
FROM judged j WHERE d.id = j.id RETURNING d.id, d.notifier, d.status"""
)
# Each delivery of a route with a rate gets a slot of its own, once for each try: those that have waited for it are not looked at again. A
# slot that was missed by a minute (there was no dispatcher, or no broker) is given anew, so that what was missed does not come at once.
_SLOTS = text(
    """
WITH limited AS MATERIALIZED (
  SELECT name, gap, GREATEST(now(), free_at) AS free FROM routes WHERE gap IS NOT NULL ORDER BY name FOR UPDATE
), head AS MATERIALIZED (
  SELECT id, route, status, slot_at FROM deliveries WHERE next_try_at <= now() ORDER BY next_try_at LIMIT :limit FOR UPDATE SKIP LOCKED
), numbered AS MATERIALIZED (
  SELECT head.id, limited.name, limited.gap,
    limited.free + (row_number() OVER (PARTITION BY limited.name ORDER BY head.id) - 1) * limited.gap * interval '1 second' AS slot
  FROM head JOIN limited ON limited.name = head.route
  WHERE head.status = 'pending' AND (head.slot_at IS NULL OR head.slot_at < now() - interval '1 minute')
), given AS (
  UPDATE deliveries d SET slot_at = n.slot, next_try_at = n.slot FROM numbered n WHERE d.id = n.id
)
UPDATE routes r SET free_at = n.free FROM (SELECT name, max(slot) + max(gap) * interval '1 second' AS free FROM numbered GROUP BY name) n
WHERE r.name = n.name"""
)
_RATED = text("SELECT EXISTS (SELECT FROM routes WHERE gap IS NOT NULL)")
#: Due deliveries that one look gives slots to.
SLOTS = 5000
#: Seconds after which a delivery that waits for an earlier one of its task is looked at again. The end of that one's try comes first.
TURN = 10.0


class Due(NamedTuple):
    """A delivery that was due. ``dead`` says that it stays unsent: its sender was lost at the last try, or its route is switched off.
    ``waits``: an earlier one of its task and route is on its way, or was never tried.
    """

    id: int
    notifier: str
    dead: bool = False
    waits: bool = False


def dispatch(connection: Connection, limit: int, lease: float, max_attempts: int) -> list[Due]:
    """Mark due deliveries as queued, or as dead. Publish the queued ones after the commit.

    ``lease`` is the seconds after which one that nobody took is due again. A try whose sender was lost counts as failed. Of a task's
    deliveries by one route a later one waits for the first try of those before it. A route's rate gives each a time of its own.
    """
    if connection.execute(_RATED).scalar():
        connection.execute(_SLOTS, {"limit": SLOTS})
    rows = connection.execute(_DISPATCH, {"limit": limit, "lease": lease, "max_attempts": max_attempts, "turn": TURN}).all()
    due = sorted(Due(row.id, row.notifier, row.status == "dead", row.status == "pending") for row in rows)
    if dead := [one.id for one in due if one.dead]:
        system.tell_dead(connection, dead)
    return due


_QUEUED = "queued AS MATERIALIZED (SELECT id FROM deliveries WHERE id = ANY (CAST(:ids AS bigint[])) AND status = 'queued' ORDER BY id FOR UPDATE)"
_WITHDRAW = text(f"WITH {_QUEUED} UPDATE deliveries d SET status = 'pending', next_try_at = now() FROM queued WHERE d.id = queued.id")


def withdraw(connection: Connection, ids: Sequence[int]) -> None:
    """Make queued deliveries due now: their messages could not be published."""
    connection.execute(_WITHDRAW, {"ids": list(ids)})


_CLAIM = text(
    f"""
WITH {_QUEUED}, mine AS (
  UPDATE deliveries d SET status = 'sending', attempt = attempt + 1, fence = fence + 1,
    next_try_at = now() + :lease * interval '1 second', updated_at = now()
  FROM queued WHERE d.id = queued.id
  RETURNING d.*
)
SELECT mine.id, mine.route, mine.notifier, mine.attempt, mine.fence, e.id AS event_id, e.type AS event, e.time, e.task_id,
  e.attempt AS task_attempt, e.data, e.namespace, COALESCE(t.type, '') AS type, COALESCE(t.queue, e.data ->> 'queue', '') AS queue,
  COALESCE(t.priority, 0) AS priority, COALESCE(t.tags, '{{}}') AS tags, COALESCE(t.status, '') AS status, s.options,
  CASE WHEN s.task_id IS NULL THEN {OUTCOME} WHEN e.type = 'task.succeeded' THEN {OUTCOME_URL} END AS outcome
FROM mine JOIN events e ON e.id = mine.event_id LEFT JOIN tasks t ON t.id = e.task_id
  LEFT JOIN subscriptions s ON s.task_id = mine.task_id AND '{SUBSCRIBED}' || s.n = mine.route"""
)


def claim(connection: Connection, ids: Sequence[int], lease: float) -> list[RowMapping]:
    """Take queued deliveries to send, with their events, and the options of a subscription. ``lease`` (seconds) is longer than a try may take.

    ``outcome`` is what a success tells of its result. A subscription gets its address only: who submits may not be allowed to read.
    """
    return list(connection.execute(_CLAIM, {"ids": list(ids), "lease": lease}).mappings())


@dataclass(frozen=True, slots=True)
class Tried:
    """How a try ended: ``delivered``, ``retry`` (after ``delay`` seconds, if tries are left) or ``dead``.

    ``gone``: the receiver wants nothing more by this route or subscription.
    """

    id: int
    fence: int
    outcome: Literal["delivered", "retry", "dead"]
    detail: str = ""
    delay: float = 0.0
    duration: float = 0.0
    gone: bool = False


# The next one of the task by the route may have waited for this: it is due now. Whatever became of the try: one that failed holds up no
# other for the hours until it is tried again. It is made due even if it looks due: a dispatch that still sees this try may be about to let
# it wait.
_FINISH = text(
    f"""
WITH said AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(id bigint, fence bigint, outcome text, detail text, delay float8, duration float8)
), mine AS MATERIALIZED (
  SELECT said.*, CASE
      WHEN said.outcome = 'delivered' THEN 'delivered'
      WHEN said.outcome = 'dead' OR d.attempt >= :max_attempts THEN 'dead'
      ELSE 'pending' END AS becomes
  FROM said JOIN deliveries d ON d.id = said.id AND d.fence = said.fence AND d.status = 'sending' ORDER BY d.id FOR UPDATE OF d
), done AS (
  UPDATE deliveries d SET
    status = s.becomes,
    delivered_at = CASE WHEN s.becomes = 'delivered' THEN now() END,
    next_try_at = CASE WHEN s.becomes = 'pending' THEN now() + s.delay * interval '1 second' END,
    slot_at = NULL,
    tries = d.tries || jsonb_build_array(jsonb_build_object('attempt', d.attempt, 'time', now(), 'outcome',
      CASE s.outcome WHEN 'delivered' THEN 'delivered' ELSE 'failed' END, 'detail', s.detail, 'duration', s.duration)),
    updated_at = now()
  FROM mine s WHERE d.id = s.id
  RETURNING d.id, d.status, d.route, d.task_id
), next AS (
  UPDATE deliveries n SET next_try_at = now() FROM done
  WHERE done.task_id <> '{NO_TASK}' AND n.id = (SELECT o.id FROM deliveries o WHERE o.task_id = done.task_id AND o.route = done.route
      AND o.next_try_at IS NOT NULL AND o.id > done.id ORDER BY o.id LIMIT 1)
    AND n.status = 'pending' AND n.attempt = 0 AND (n.slot_at IS NULL OR n.slot_at <= now())
)
SELECT id, status, route, task_id FROM done"""
)


def finish(connection: Connection, tried: Sequence[Tried], max_attempts: int) -> list[RowMapping]:
    """Record how tries ended. A missing row was stale: another sender has it by now."""
    rows: list[dict[str, Any]] = [
        {"id": t.id, "fence": t.fence, "outcome": t.outcome, "detail": t.detail[:2000], "delay": t.delay, "duration": round(t.duration, 4)} for t in tried
    ]
    done = list(connection.execute(_FINISH, {"rows": to_json(rows), "max_attempts": max_attempts}).mappings())
    gone = {t.id: t.detail for t in tried if t.gone}
    for row in done:
        if row["id"] in gone:
            _switch_off(connection, row["route"], row["task_id"], gone[row["id"]])
    if dead := [row["id"] for row in done if row["status"] == "dead"]:
        system.tell_dead(connection, dead)
    return done


def _switch_off(connection: Connection, route: str, task_id: UUID, reason: str) -> None:
    """What was pending by then is dead when it is due, with the reason."""
    if route.startswith(SUBSCRIBED):
        end = text("UPDATE subscriptions SET ended_at = now() WHERE task_id = :task AND :subscribed || n = :route AND ended_at IS NULL")
        connection.execute(end, {"task": task_id, "subscribed": SUBSCRIBED, "route": route})
    else:
        routes.disable(connection, route, reason)


_REDELIVER_MANY = text(
    """
WITH ended AS MATERIALIZED (
  SELECT id FROM deliveries
  WHERE id = ANY (CAST(:ids AS bigint[])) AND namespace = :namespace AND status = ANY (CAST(:statuses AS text[])) ORDER BY id FOR UPDATE
)
UPDATE deliveries d SET status = 'pending', attempt = 0, delivered_at = NULL, next_try_at = now(), slot_at = NULL, updated_at = now()
FROM ended WHERE d.id = ended.id"""
)


def redeliver_many(connection: Connection, namespace: str, ids: Sequence[int], statuses: Sequence[str] = ENDED) -> int:
    """Send those of these deliveries again that have ended (in one of ``statuses``), as :func:`redeliver` does; answers how many."""
    wanted = [status for status in statuses if status in ENDED]
    return connection.execute(_REDELIVER_MANY, {"ids": list(ids), "namespace": namespace, "statuses": wanted}).rowcount


# The fence stays as it is: a sender that was given up long ago must not find its number valid again.
_REDELIVER = text(
    """
WITH moved AS (
  UPDATE deliveries SET status = 'pending', attempt = 0, delivered_at = NULL, next_try_at = now(), slot_at = NULL, updated_at = now()
  WHERE id = :id AND namespace = :namespace AND status IN ('delivered', 'dead')
  RETURNING *
)
SELECT moved.*, e.type AS told FROM moved JOIN events e ON e.id = moved.event_id"""
)


def redeliver(connection: Connection, namespace: str, delivery_id: int, ids: PublicIds = PLAIN) -> Mapping[str, Any]:
    """Send a delivery again that is dead or was delivered: the same event by the same ids, with fresh attempts. Its tries are kept.

    Raises:
        NotFound: it is not there.
        IllegalTransition: it is on its way.
    """
    values = {"id": delivery_id, "namespace": namespace}
    if row := connection.execute(_REDELIVER, values).mappings().first():
        return {**row, "event": row["told"]}
    status = connection.execute(text("SELECT status FROM deliveries WHERE id = :id AND namespace = :namespace"), values).scalar()
    if status is None:
        raise NotFound(f"There is no delivery {ids.hide(delivery_id)} here.")
    # It ended between the two statements: refused once, free the next time.
    raise IllegalTransition("redeliver", status, ("redeliver",) if status in ("delivered", "dead") else (), subject="delivery")
