"""What the lifecycle's verbs are given: a new task, and how a run ended. Without SQLAlchemy: handlers run, and submit, in processes that
know no database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

#: Each queue has one for sync handlers and one for async ones.
LANES: Final = ("sync", "async")


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as it is submitted: validated, with its handler's defaults filled in. ``delay`` is in seconds.

    ``notify`` are its subscriptions: ``notifier``, ``events`` and ``options`` of each.
    """

    id: UUID
    type: str
    payload: Any
    queue: str
    lane: str
    priority: int
    timeout: float
    max_attempts: int
    namespace: str = "default"
    run_at: str | None = None
    delay: float | None = None
    expires_at: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unique_key: str | None = None
    parent_id: UUID | None = None
    awaited: bool = False
    notify: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def row(self) -> dict[str, Any]:
        """This task as a JSON row for :func:`taskyard.lifecycle.submit`."""
        notify = {"notify": self.notify} if self.notify else {}
        return notify | {
            "id": str(self.id),
            "namespace": self.namespace,
            "type": self.type,
            "payload": self.payload,
            "queue": self.queue,
            "lane": self.lane,
            "priority": self.priority,
            "timeout": self.timeout,
            "max_attempts": self.max_attempts,
            "run_at": self.run_at,
            "delay": self.delay,
            "expires_at": self.expires_at,
            "tags": self.tags,
            "metadata": self.metadata,
            "unique_key": self.unique_key,
            "parent_id": str(self.parent_id) if self.parent_id else None,
            "awaited": self.awaited,
        }


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended. ``delay`` (seconds) goes with ``retry`` and ``parked``; ``result`` is JSON text, ``error`` a JSON object.

    ``retry`` means: again if attempts are left. ``lost`` means that the run's process died; ``returned`` that the worker
    hands the task back, for the ``reason`` that its history shows; ``parked`` that it could not begin, and waits before it is tried again.
    """

    id: UUID
    fence: int
    outcome: Literal["succeeded", "failed", "retry", "cancelled", "lost", "returned", "parked"]
    result: str | None = None
    error: Mapping[str, Any] | None = None
    delay: float = 0.0
    reason: str | None = None

    def row(self) -> dict[str, Any]:
        """As a JSON row for :func:`taskyard.lifecycle.finish`."""
        row = {"id": str(self.id), "fence": self.fence, "outcome": self.outcome}
        if self.outcome == "succeeded":
            return {**row, "result": self.result}
        return {**row, "result": self.result, "error": self.error, "delay": self.delay, "reason": self.reason}
