"""What a submission answers with: the task as it was sent, and what the database decided of it.

A new task is known but for its status and times, so nothing else is read back. This is the hottest answer of all.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from taskyard.records import NewTask

VALIDATED = ("type", "payload", "priority", "queue", "run_at", "delay", "expires_at", "timeout", "max_attempts", "tags", "metadata", "unique_key")


def new_task(new: NewTask, row: RowMapping) -> dict[str, Any]:
    """A task that was just inserted, as :class:`taskyard_api.models.TaskOut` shows it; ``row`` is of lifecycle.submit."""
    created_at = row["created_at"]
    return {
        "id": new.id,
        "namespace": new.namespace,
        "type": new.type,
        "status": row["status"],
        "payload": new.payload,
        "priority": new.priority,
        "queue": new.queue,
        "run_at": row["run_at"],
        "expires_at": datetime.fromisoformat(new.expires_at) if new.expires_at else None,
        "timeout": new.timeout,
        "max_attempts": new.max_attempts,
        "tags": new.tags,
        "metadata": new.metadata,
        "unique_key": new.unique_key,
        "parent_id": new.parent_id,
        "attempt": 0,
        "result": None,
        "error": None,
        "progress": None,
        "created_at": created_at,
        "updated_at": created_at,
        "queued_at": None,
        "started_at": None,
        "finished_at": None,
        "next_run_at": row["next_run_at"],
        "cancel_requested": False,
        "version": 1,
        "position": None,
        "estimated_start": None,
    }


def valid_task(new: NewTask) -> dict[str, Any]:
    """A task that would be submitted, with its type's defaults filled in: what ``validate_only`` answers."""
    row = new.row()
    return {name: row[name] for name in VALIDATED}
