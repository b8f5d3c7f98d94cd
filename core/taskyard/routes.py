"""The routes that the verbs see: a table, so that all processes know the same ones at the moment of a commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from taskyard.errors import NotFound
from taskyard.settings import Route
from taskyard.spelling import did_you_mean

#: Does a route (``r``) want an event (``told``, with the columns of its task)? Whoever writes deliveries asks so.
WANTS = """told.event = ANY (r.events)
    AND told.priority >= r.min_priority
    AND (r.type_pattern IS NULL OR told.type ~ r.type_pattern)
    AND (r.queues IS NULL OR told.queue = ANY (r.queues))
    AND (r.tags IS NULL OR told.tags && r.tags)
    AND (r.namespaces IS NULL OR told.namespace = ANY (r.namespaces))
    AND r.disabled_at IS NULL"""
#: The same for events that may be of no task: what one has no value for, it is not chosen by.
WANTS_SYSTEM = """told.event = ANY (r.events)
    AND (told.priority IS NULL OR told.priority >= r.min_priority)
    AND (r.type_pattern IS NULL OR told.type IS NULL OR told.type ~ r.type_pattern)
    AND (r.queues IS NULL OR told.queue IS NULL OR told.queue = ANY (r.queues))
    AND (r.tags IS NULL OR told.tags IS NULL OR told.tags && r.tags)
    AND (r.namespaces IS NULL OR told.namespace IS NULL OR told.namespace = ANY (r.namespaces))
    AND r.disabled_at IS NULL"""


def glob_pattern(types: Sequence[str] | None) -> str | None:
    """Globs over task types (``report.*``) as one regular expression that Postgres understands; None for all.

    ``*`` is any characters, ``?`` is any one, ``[a-c]`` is one of these, ``[!a-c]`` is any but these, all else is itself: as in
    Python's fnmatch. (Its own translation has atomic groups, at which every verb would fail.)
    """
    if types is None:
        return None
    parts = ["".join(_symbol(symbol) for symbol in _SYMBOLS.findall(glob)) for glob in types]
    return f"^({'|'.join(parts)})$"


#: A bracket's first member may be a ``]``. One that is not closed within 200 characters stands for itself.
_SYMBOLS = re.compile(r"\[!?+\]?+[^\]]{0,200}\]|.", re.DOTALL)
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


def fingerprint(route: Route) -> str:
    """A route's whole configuration, as something short that tells it from any other and shows nothing of it."""
    return hashlib.sha256(json.dumps(route.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


_UPSERT = text(
    """
INSERT INTO routes AS r (name, notifier, events, type_pattern, queues, tags, min_priority, namespaces, every, first, gap, fingerprint)
VALUES (:name, :notifier, CAST(:events AS text[]), :pattern, CAST(:queues AS text[]), CAST(:tags AS text[]), :priority,
  CAST(:namespaces AS text[]), :every, :first, :gap, :fingerprint)
ON CONFLICT (name) DO UPDATE SET notifier = EXCLUDED.notifier, events = EXCLUDED.events, type_pattern = EXCLUDED.type_pattern,
  queues = EXCLUDED.queues, tags = EXCLUDED.tags, min_priority = EXCLUDED.min_priority, namespaces = EXCLUDED.namespaces,
  every = EXCLUDED.every, first = EXCLUDED.first, gap = EXCLUDED.gap, fingerprint = EXCLUDED.fingerprint,
  free_at = CASE WHEN r.gap = EXCLUDED.gap THEN r.free_at END,
  disabled_at = CASE WHEN r.fingerprint = EXCLUDED.fingerprint THEN r.disabled_at END,
  disabled_reason = CASE WHEN r.fingerprint = EXCLUDED.fingerprint THEN r.disabled_reason END"""
)
# What waits for a slot of a rate that is not the route's any more is due now, and gets another if it still has a rate.
_FREE = text(
    """UPDATE deliveries SET slot_at = NULL, next_try_at = now()
    WHERE next_try_at > now() AND slot_at IS NOT NULL AND status = 'pending' AND route = ANY (CAST(:routes AS text[]))"""
)


def sync_routes(connection: Connection, routes: Sequence[Route]) -> None:
    """Make the configured routes the ones that the verbs see. The dispatcher calls it at its start."""
    connection.execute(text("LOCK TABLE routes IN SHARE ROW EXCLUSIVE MODE"))
    gaps = {row.name: row.gap for row in connection.execute(text("SELECT name, gap FROM routes"))}
    names = {"names": [route.name for route in routes]}
    connection.execute(text("DELETE FROM routes WHERE name <> ALL (CAST(:names AS text[]))"), names)
    connection.execute(text("DELETE FROM digest_items WHERE route <> ALL (CAST(:names AS text[]))"), names)
    for route in routes:
        connection.execute(_UPSERT, _row(route))
    if changed := [route.name for route in routes if gaps.get(route.name) not in (None, route.gap)]:
        connection.execute(_FREE, {"routes": changed})


def _row(route: Route) -> dict[str, Any]:
    return {
        "name": route.name,
        "notifier": route.notifier,
        "events": list(route.events),
        "pattern": glob_pattern(route.types),
        "queues": list(route.queues) if route.queues is not None else None,
        "tags": list(route.tags) if route.tags is not None else None,
        "priority": route.min_priority,
        "namespaces": list(route.namespaces) if route.namespaces is not None else None,
        "every": route.every,
        "first": route.first,
        "gap": route.gap,
        "fingerprint": fingerprint(route),
    }


# --- routes that are switched off -----------------------------------------------------------------------------------------

_DISABLE = text("UPDATE routes SET disabled_at = now(), disabled_reason = :reason WHERE name = :name AND disabled_at IS NULL")
_ENABLE = text("UPDATE routes SET disabled_at = NULL, disabled_reason = NULL WHERE name = :name AND disabled_at IS NOT NULL")


def disable(connection: Connection, name: str, reason: str) -> bool:
    """Switch a route off: its receiver wants no more. Until its configuration changes, or :func:`enable`. False: it was off, or is gone."""
    return connection.execute(_DISABLE, {"name": name, "reason": reason[:500]}).rowcount == 1


def enable(connection: Connection, name: str) -> bool:
    """Switch a route on again. False: it was on.

    Raises:
        NotFound: no dispatcher has started with it; carries the nearest name.
    """
    known(connection, name)
    return connection.execute(_ENABLE, {"name": name}).rowcount == 1


def known(connection: Connection, name: str) -> Row[Any]:
    """A route that a dispatcher has started with. Raises NotFound, with the nearest name."""
    rows = {row.name: row for row in connection.execute(text("SELECT * FROM routes ORDER BY name"))}
    if name not in rows:
        hint = did_you_mean(name, rows) or f" Known: {', '.join(rows) or 'none'}."
        raise NotFound(f"No dispatcher has started with a route {name!r}: it reads the configured routes at its start.{hint}")
    return rows[name]


def states(connection: Connection) -> dict[str, Row[Any]]:
    """``disabled_at`` and ``disabled_reason`` of each route that a dispatcher has started with."""
    return {row.name: row for row in connection.execute(text("SELECT name, disabled_at, disabled_reason FROM routes"))}
