"""Would a write work now? A web process that can only read takes no tasks, and is not ready."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from taskyard import interference, lifecycle
from taskyard.database_errors import is_bad_data, is_outage, sqlstate_of
from taskyard.records import NewTask
from taskyard.tables import metadata

OK: Final = "ok"
#: What a web process does to which table.
_NEEDED: Final = (
    ("tasks", "SELECT"),
    ("tasks", "INSERT"),
    ("tasks", "UPDATE"),
    ("events", "SELECT"),
    ("events", "INSERT"),
    ("deliveries", "INSERT"),
    ("deliveries", "UPDATE"),
    ("subscriptions", "INSERT"),
    ("idempotency_keys", "INSERT"),
)
#: What all roles together do to each table.
_ALL: Final = tuple((name, act) for name in sorted(metadata.tables) for act in ("SELECT", "INSERT", "UPDATE", "DELETE"))
_STATE = text(
    """
SELECT current_setting('transaction_read_only')::bool AS read_only, ARRAY(
  SELECT needed.act || ' on ' || needed.name FROM unnest(CAST(:names AS text[]), CAST(:acts AS text[])) WITH ORDINALITY AS needed(name, act, n)
  WHERE NOT COALESCE(has_table_privilege(to_regclass(needed.name), needed.act), false) ORDER BY needed.n) AS missing"""
)
_BE_QUICK = text("SET LOCAL lock_timeout = '1s'")
_REASONS: Final = {
    "25006": "the database is read-only",
    "53100": "the database's disk is full",
    "55P03": "the table of tasks is locked",
}


def look(connection: Connection, trial_bytes: int) -> str:
    """``ok``, or why a write would fail. The transaction is rolled back.

    Rights and a read-only server are asked about; with ``trial_bytes`` above 0, a task with a payload of this size is inserted, too, and rolled
    back: nothing else shows that a disk is full.
    """
    state = _state(connection, _NEEDED)
    if state.missing:
        return f"the database's role lacks {', '.join(state.missing)}"
    # A read-only session may be so for good, though its server takes writes again: what a write raises has the pool connect anew.
    return _trial(connection, trial_bytes) if trial_bytes or state.read_only else OK


def missing_rights(connection: Connection) -> list[str]:
    """What some role of Taskyard does, and the database's role may not, such as ``INSERT on workers``."""
    return list(_state(connection, _ALL).missing)


def _state(connection: Connection, needed: Sequence[tuple[str, str]]) -> Row[Any]:
    names, acts = map(list, zip(*needed, strict=True))
    return connection.execute(_STATE, {"names": names, "acts": acts}).one()


def _trial(connection: Connection, size: int) -> str:
    # Random, or it would be stored compressed.
    payload = secrets.token_hex(size // 2)
    task = NewTask(uuid.uuid4(), "taskyard.trial", payload, queue="default", lane="sync", priority=0, timeout=1.0, max_attempts=1)
    try:
        connection.execute(_BE_QUICK)
        if not lifecycle.submit(connection, [task]):
            return f"a trial write left no row: {', '.join(interference.found(connection, ['tasks'])) or 'nothing is found that keeps it out'}"
    except Exception as error:
        # A trial's data is as it should be, so what blames them is a constraint or a trigger of somebody else.
        if not is_outage(error) and not is_bad_data(error):
            raise
        return _REASONS.get(state := sqlstate_of(error) or "", f"a trial write failed{f' (SQLSTATE {state})' if state else ''}")
    finally:
        connection.rollback()
    return OK
