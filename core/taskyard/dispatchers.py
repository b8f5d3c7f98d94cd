"""Dispatchers that are at work, and whether each of them reaches the broker.

A dispatcher writes a row of its own every few seconds. Web processes and health checks read it: they need no way to the broker themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from taskyard.settings import Settings

#: Seconds between two beats of a dispatcher, and two looks at the broker, at most.
BEAT_EVERY = 5.0
#: Rows of dispatchers that were killed are deleted after this many seconds.
FORGET_AFTER = 86400.0

_BEAT = text(
    """
WITH gone AS (DELETE FROM dispatchers WHERE beat_at < now() - :forget * interval '1 second' AND id <> :id)
INSERT INTO dispatchers (id, host, broker_error) VALUES (:id, :host, :error)
ON CONFLICT (id) DO UPDATE SET beat_at = now(), broker_error = EXCLUDED.broker_error"""
)
_BROKER = text(
    """
SELECT count(*) AS alive, count(broker_error) AS away, min(broker_error) AS error
FROM dispatchers WHERE beat_at > now() - :silence * interval '1 second' AND (CAST(:host AS text) IS NULL OR host = :host)"""
)


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What the live dispatchers say of the broker: of how many of them it is away, and the error of one of these."""

    dispatchers: int
    away: int
    error: str | None

    @property
    def up(self) -> bool:
        """Does at least one live dispatcher reach it?"""
        return self.dispatchers > self.away


def beat(connection: Connection, id_: UUID, host: str, broker_error: str | None) -> None:
    """Say that a dispatcher lives, and why it can't reach the broker, if it can't."""
    connection.execute(_BEAT, {"id": id_, "host": host, "error": broker_error, "forget": FORGET_AFTER})


def leave(connection: Connection, id_: UUID) -> None:
    """A dispatcher stops."""
    connection.execute(text("DELETE FROM dispatchers WHERE id = :id"), {"id": id_})


def broker(connection: Connection, settings: Settings, host: str | None = None) -> BrokerState:
    """The broker as the live dispatchers see it, or those of one host."""
    row = connection.execute(_BROKER, {"silence": longest_silence(settings), "host": host}).one()
    return BrokerState(row.alive, row.away, row.error)


def longest_silence(settings: Settings) -> float:
    """Seconds for which a dispatcher that is well may be silent: one statement may take its time."""
    return max(BEAT_EVERY, settings.dispatch.tick) + settings.database.statement_timeout
