"""A dispatcher's row in the database: that it lives, and whether it reaches the broker."""

from __future__ import annotations

import socket
import time
from uuid import UUID

import structlog
import uuid_utils.compat as uuid7
from sqlalchemy import Engine

from taskyard import dispatchers
from taskyard.database_errors import driver_words
from taskyard.dispatch.publisher import BrokerAway, Publisher, QueueRefused
from taskyard.retrying import transaction

log = structlog.get_logger(__name__)


class Presence:
    """Kept by one dispatcher. ``broker_error`` is what keeps it from the broker, None while nothing does."""

    def __init__(self, engine: Engine, publisher: Publisher) -> None:
        self.broker_error: str | None = None
        self._engine = engine
        self._publisher = publisher
        self._id: UUID = uuid7.uuid7()
        self._due_at = float("-inf")

    def is_due(self) -> bool:
        """Is it time to look at the broker, and to beat?"""
        return time.monotonic() >= self._due_at

    def probe(self) -> None:
        """Look whether the broker answers: an idle dispatcher would find out at its next task.

        Raises:
            BrokerAway: it does not. A queue that refuses is no outage.
        """
        try:
            self._publisher.delivery_depth()
        except QueueRefused:
            return

    def beat(self) -> None:
        """Write the row."""
        transaction(self._engine, dispatchers.beat, self._id, socket.gethostname(), self.broker_error)
        self._due_at = time.monotonic() + dispatchers.BEAT_EVERY

    def broker_is_away(self, error: BrokerAway) -> None:
        """The broker could not be reached. The first time is told at once."""
        if self.broker_error is None:
            self._due_at = float("-inf")
        self.broker_error = str(error)

    def broker_is_back(self) -> None:
        """The broker answered."""
        if self.broker_error is not None:
            self.broker_error = None
            self._due_at = float("-inf")
            log.info("dispatcher.broker_back")

    def leave(self) -> None:
        """The dispatcher stops. A row that stays is silent soon."""
        try:
            transaction(self._engine, dispatchers.leave, self._id)
        except Exception as error:
            log.warning("dispatcher.not_forgotten", error=driver_words(error))
