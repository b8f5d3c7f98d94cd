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

#: Bytes of JSON that a result may have which `task.succeeded` tells itself, in streams and to routes. Of a larger one it tells the address.
MOST_TOLD = 8192
#: An event `e` of a task `t` as SQL: what a success adds to its data outside. A task that has succeeded keeps its result, and a result that is
#: small is in its row: neither is stored twice, nor is a large one read.
OUTCOME_URL = "jsonb_build_object('result_url', '/api/v1/tasks/' || t.id)"
OUTCOME = f"""CASE WHEN e.type = 'task.succeeded' AND t.id IS NOT NULL THEN
    CASE WHEN t.result IS NULL OR (pg_column_size(t.result) <= {MOST_TOLD} AND octet_length(t.result::text) <= {MOST_TOLD})
      THEN jsonb_build_object('result', t.result) ELSE {OUTCOME_URL} END
  END"""

#: The task of an event that is of no task: the Nil UUID (RFC 9562, 5.9).
NO_TASK = UUID(int=0)
#: The namespace of what is the installation's.
NAMESPACE = "default"
