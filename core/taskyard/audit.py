"""The audit: who changed what, and from where. One row for each change, in the change's own transaction."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, Row, insert, select, text

from taskyard.events import NAMESPACE
from taskyard.keys import Caller
from taskyard.tables import audit

#: Characters of a target that are kept.
LONGEST_TARGET = 500

_PURGE = text(
    """
DELETE FROM audit WHERE id IN (
  SELECT id FROM (SELECT id, time FROM audit ORDER BY id LIMIT :limit) AS oldest WHERE time < now() - :seconds * interval '1 second')"""
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: a key's id and name, both empty where no key was asked for; its namespace; and where the request came from."""

    key_id: str
    key_name: str
    namespace: str
    address: str

    @classmethod
    def of_caller(cls, caller: Caller | None, address: str) -> Self:
        """The caller of a request, or everybody where no keys are asked for."""
        return cls(caller.key_id, caller.name, caller.namespace, address) if caller else cls("", "", NAMESPACE, address)

    @classmethod
    def by_broker(cls, worker: str) -> Self:
        """Whoever may write to the broker, such as Flower, and reached this worker."""
        return cls("", "", NAMESPACE, f"broker: {worker}")

    @classmethod
    def at_command_line(cls) -> Self:
        """The user of this machine who runs a command that speaks to the database itself."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # Python before 3.13 raises KeyError for a user without a name, such as a container's
            user = "?"
        return cls("", "", NAMESPACE, f"{user}@{socket.gethostname()}")


def record(connection: Connection, actor: Actor, verb: str, target: str) -> None:
    """Record that ``actor`` did ``verb``, such as ``queue.pause``, to ``target``. It is kept if the transaction is."""
    values = {"key_id": actor.key_id, "key_name": actor.key_name, "namespace": actor.namespace, "address": actor.address}
    connection.execute(insert(audit).values(**values, verb=verb, target=target[:LONGEST_TARGET]))


def entries(connection: Connection, limit: int) -> Sequence[Row[Any]]:
    """What was recorded, newest first."""
    return connection.execute(select(audit).order_by(audit.c.id.desc()).limit(limit)).all()


def purge(connection: Connection, seconds: float, limit: int) -> int:
    """Delete up to ``limit`` entries that are older than ``seconds``; answers how many."""
    return connection.execute(_PURGE, {"seconds": seconds, "limit": limit}).rowcount
