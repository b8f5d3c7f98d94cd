"""Idempotency keys: a submission that is repeated with its key is answered with the tasks that it made, and makes none.

A key is written by the statement that inserts its tasks (see lifecycle.submit). Whoever brings the same key meanwhile waits for
that commit, by the table's primary key, and then finds it here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from taskyard.errors import IdempotencyMismatch, NotFound


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key, and the fingerprint of what came with it."""

    namespace: str
    key: str
    fingerprint: str

    def row(self, task_ids: Sequence[UUID]) -> dict[str, Any]:
        """This key as a JSON row for :func:`taskyard.lifecycle.submit`."""
        return {"namespace": self.namespace, "key": self.key, "fingerprint": self.fingerprint, "task_ids": [str(id_) for id_ in task_ids]}


def fingerprint(body: Any) -> str:
    """One fingerprint for a JSON value, however its objects are ordered and spaced."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_TASKS = text(
    """
SELECT t.* FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS made(id, place) JOIN tasks t USING (id)
WHERE t.namespace = :namespace ORDER BY made.place"""
)


def replay(connection: Connection, key: IdempotencyKey) -> list[RowMapping] | None:
    """The tasks that a key made, as they stand now, in their order. None: nobody has used the key.

    Raises:
        IdempotencyMismatch: it was used with another body.
        NotFound: its tasks are not kept any more.
    """
    statement = text("SELECT fingerprint, task_ids FROM idempotency_keys WHERE namespace = :namespace AND key = :key")
    used = connection.execute(statement, {"namespace": key.namespace, "key": key.key}).first()
    if used is None:
        return None
    if used.fingerprint != key.fingerprint:
        raise IdempotencyMismatch
    rows = list(connection.execute(_TASKS, {"ids": used.task_ids, "namespace": key.namespace}).mappings())
    if len(rows) < len(used.task_ids):
        raise NotFound("The Idempotency-Key was used before, and what it made is not kept any more.")
    return rows


def take_back(connection: Connection, key: IdempotencyKey, task_ids: Sequence[UUID]) -> bool:
    """Forget a key that was written for just these tasks. False: it is not there, or another request's."""
    statement = text("DELETE FROM idempotency_keys WHERE namespace = :namespace AND key = :key AND task_ids = CAST(:ids AS uuid[])")
    return connection.execute(statement, {"namespace": key.namespace, "key": key.key, "ids": list(task_ids)}).rowcount == 1


_PURGE = text(
    """
WITH old AS MATERIALIZED (
  SELECT namespace, key FROM idempotency_keys WHERE created_at < now() - :age * interval '1 second'
  ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys k USING old WHERE k.namespace = old.namespace AND k.key = old.key"""
)


def purge(connection: Connection, age: float, limit: int) -> int:
    """Forget up to ``limit`` keys that are older than ``age`` seconds, the oldest first; answers how many."""
    return connection.execute(_PURGE, {"age": age, "limit": limit}).rowcount
