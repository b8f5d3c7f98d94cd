"""The event types of a task's history: one list that settings, SQL and documentation share."""

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
