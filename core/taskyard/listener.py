"""A connection that listens: LISTEN/NOTIFY through psycopg, for loops that wait on a file descriptor."""

from __future__ import annotations

import psycopg
from sqlalchemy import Engine

from taskyard import sessions


class Listener:
    """LISTEN on one channel of an engine's database. Not thread-safe, and never part of the pool."""

    def __init__(self, engine: Engine, channel: str) -> None:
        self._engine = engine
        self._channel = channel
        self._connection: psycopg.Connection | None = None

    def connect(self) -> None:
        """Connect and LISTEN, unless that is so already. Raises psycopg.OperationalError when the database is away."""
        if self._connection is not None and not self._connection.closed:
            return
        args, keywords = self._engine.dialect.create_connect_args(self._engine.url)
        keywords = {**keywords, "application_name": "taskyard-listener", "autocommit": True}
        self._connection = psycopg.connect(*args, **keywords)
        # It may be idle for hours, whatever a database or a role says about that.
        self._connection.execute(sessions.statement(sessions.CORRECTNESS))
        self._connection.execute(f"LISTEN {self._channel}")

    def fileno(self) -> int | None:
        """What to wait on, or None while there is no connection."""
        return None if self._connection is None or self._connection.closed else self._connection.fileno()

    def take(self, timeout: float = 0) -> set[str]:
        """The payloads that have come, without repeats, waiting at most ``timeout`` seconds for the first.

        Raises:
            psycopg.OperationalError: the connection broke.
        """
        if self._connection is None:
            return set()
        return {note.payload for note in self._connection.notifies(timeout=timeout, stop_after=None if timeout == 0 else 1)}

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
