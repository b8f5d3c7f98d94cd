"""Replay: past events of the history go to a route that was not there then, or that wanted less.

What the route has a delivery of already is left out, so a replay can be cut off and run again. It is one walk up the events' ids, some
at a time: nothing of it waits in memory, and no statement is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from taskyard import feed
from taskyard.errors import InvalidInput
from taskyard.retrying import transaction
from taskyard.routes import WANTS, known

#: Ids are drawn in the order of time, but for the length of the transactions that draw them. None is longer than this.
_LONGEST = timedelta(hours=1)
_FROM = text("SELECT id, time FROM events WHERE id >= :id ORDER BY id LIMIT 1")
# One replay of a route at a time: each looks for what the other has sent.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('taskyard replay ' || :route, 0))")
_PAGE = f"""
WITH page AS (
  SELECT * FROM events WHERE id > :after AND id <= :upto ORDER BY id LIMIT :limit
), told AS (
  SELECT page.id AS event_id, page.type AS event, page.namespace, page.task_id, t.type, t.queue, t.priority, t.tags
  FROM page JOIN tasks t ON t.id = page.task_id WHERE page.time >= :since AND page.time < :until
), wanted AS (
  SELECT told.*, r.name AS route, r.notifier FROM told JOIN routes r ON r.name = :route AND {WANTS}
  WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.event_id = told.event_id AND d.route = r.name)
)"""
_COUNT = "SELECT (SELECT count(*) FROM wanted) AS sent, count(*) AS read, max(id) AS last FROM page"
_DRY = text(f"{_PAGE} {_COUNT}")
_SEND = text(
    f"""{_PAGE}, sent AS (
  INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event)
  SELECT event_id, namespace, task_id, route, notifier, event FROM wanted ORDER BY event_id
) {_COUNT}"""
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is: events looked at, of them sent, and the part of the way (0 to 1) that is done."""

    read: int
    sent: int
    fraction: float


def replay(engine: Engine, route: str, since: datetime, until: datetime, *, dry_run: bool = False, batch: int = 1000) -> Iterator[Progress]:
    """Send the events of that time (``until`` not included) that the route wants and has no delivery of. Each step is a commit.

    Raises:
        NotFound: no dispatcher has started with this route.
        InvalidInput: it has digests.
    """
    with engine.connect() as connection:
        if known(connection, route).every is not None:
            raise InvalidInput(f"The route {route!r} collects its events into digests; a replay sends them one by one.")
        first, last = first_event(connection, since) - 1, feed.drawn(connection)
    after, read, sent = first, 0, 0
    while after < last:
        values = {"route": route, "after": after, "upto": last, "since": since, "until": until, "limit": batch}
        row = transaction(engine, _send, values, dry_run=dry_run)
        read, sent = read + row.read, sent + row.sent
        after = row.last if row.read == batch else last
        yield Progress(read, sent, (after - first) / (last - first))


def _send(connection: Connection, values: Mapping[str, Any], *, dry_run: bool) -> Row[Any]:
    connection.execute(_LOCK, {"route": values["route"]})
    return connection.execute(_DRY if dry_run else _SEND, values).one()


def first_event(connection: Connection, since: datetime) -> int:
    """The id before which no event is as young as ``since``. Events have no index on their time; their ids grow with it."""
    low, high = 0, feed.drawn(connection) + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(_FROM, {"id": middle}).first()
        if row is not None and row.time < since - _LONGEST:
            low = row.id + 1
        else:
            high = middle
    return low
