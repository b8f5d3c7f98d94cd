"""Tasks that handlers submit: made by the transaction that records their parents' success, and by no other.

A run that fails, is retried or is lost leaves none. A success is recorded once, because a finish moves a row only while it is running under
the run's fence; so a parent that runs again never doubles its children, whatever ids its earlier runs were given for them.

A child whose ``unique_key`` a live task has is not made: that task stands for it. Its parent's ``task.succeeded`` event tells so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from taskyard import interference, lifecycle
from taskyard.records import NewTask
from taskyard.storable import to_json

#: A key's holder may end between two statements: then the key is free, and the child is submitted again. So often at most.
TRIES = 3

_TELL = text(
    """
UPDATE events e SET data = e.data || jsonb_build_object('not_submitted', s.children)
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(parent_id uuid, children jsonb)
WHERE e.id = (SELECT max(id) FROM events WHERE task_id = s.parent_id AND type = 'task.succeeded')"""
)


def submit(connection: Connection, children: Sequence[NewTask]) -> list[RowMapping]:
    """Submit the children of runs whose success this transaction records; answers those that were made.

    Raises:
        Discarded: PostgreSQL left one out for no reason of ours. The transaction is to be rolled back, and tried again.
    """
    made: dict[UUID, RowMapping] = {}
    left = list(children)
    for _ in range(TRIES):
        made |= lifecycle.submit(connection, left)
        left = [child for child in left if child.id not in made]
        if any(child.unique_key is None for child in left):
            raise interference.discarded(connection)
        holders = _holders(connection, left)
        if all(child.id in holders for child in left):
            break
    if left:
        _tell(connection, left, holders)
    return list(made.values())


def _holders(connection: Connection, children: Sequence[NewTask]) -> dict[UUID, UUID]:
    """Who has the unique_key of each of these."""
    found: dict[UUID, UUID] = {}
    for namespace in {child.namespace for child in children}:
        keys = {child.id: child.unique_key for child in children if child.namespace == namespace and child.unique_key is not None}
        holders = lifecycle.unique_key_holders(connection, namespace, set(keys.values()))
        found |= {id_: holders[key] for id_, key in keys.items() if key in holders}
    return found


def _tell(connection: Connection, left: Sequence[NewTask], holders: dict[UUID, UUID]) -> None:
    """Write into the parents' events, which nobody has seen yet, what was not submitted and who stands for it."""
    by_parent: dict[str, list[dict[str, Any]]] = {}
    for child in left:
        holder = holders.get(child.id)
        told = {"id": str(child.id), "type": child.type, "unique_key": child.unique_key, "task_id": str(holder) if holder else None}
        by_parent.setdefault(str(child.parent_id), []).append(told)
    rows = [{"parent_id": parent, "children": told} for parent, told in by_parent.items()]
    connection.execute(_TELL, {"rows": to_json(rows)})
