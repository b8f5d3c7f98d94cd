"""The types of events: one list that settings, SQL and documentation share."""

from __future__ import annotations

from uuid import UUID

EVENT_TYPES = (
    "task.submitted",
    "task.started",
    "task.progress",
    "task.retrying",
    "task.lost",
    "task.parked",
    "task.held",
    "task.released",
    "task.updated",
    "task.cancel_requested",
    "task.succeeded",
    "task.failed",
    "task.cancelled",
    "task.expired",
)

#: What happens to the installation and not to a task.
SYSTEM_EVENT_TYPES = ("worker.lost", "plugin.failed", "queue.stalled", "delivery.dead")
#: Many events in one, for a route with `every`.
DIGEST = "digest"

#: The task of an event that is of no task: the Nil UUID (RFC 9562, 5.9).
NO_TASK = UUID(int=0)
#: The namespace of what is the installation's.
NAMESPACE = "default"
