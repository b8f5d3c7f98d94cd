"""PATCH of a task: fields that change, and a status that stands for a verb, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import Connection, RowMapping
from typing_extensions import TypedDict

from taskyard import lifecycle, queries
from taskyard.errors import InvalidInput
from taskyard.lifecycle import TRANSITIONS
from taskyard.storable import find_unstorable
from taskyard.submission import Metadata, Priority, Tags
from taskyard.validation import Instant, problems_of


class TaskPatch(TypedDict, total=False):
    """What to change. ``tags`` and ``metadata`` are replaced as a whole; null takes ``run_at`` or ``expires_at`` away."""

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "examples": [{"priority": 9, "tags": ["urgent"]}]})  # type: ignore[misc]  # Pydantic's way to configure a TypedDict

    status: Literal["cancelled", "held", "pending"]
    priority: Priority
    run_at: Instant | None
    expires_at: Instant | None
    tags: Tags
    metadata: Metadata


PATCH: TypeAdapter[TaskPatch] = TypeAdapter(TaskPatch)


def read_patch(sent: dict[str, Any]) -> dict[str, Any]:
    """A validated patch, with times as text.

    Raises:
        InvalidInput: carries JSON pointers.
    """
    if unstorable := find_unstorable(sent, exactly=True):
        raise InvalidInput("The change can't be stored.", [unstorable])
    try:
        patch: Mapping[str, Any] = PATCH.validate_python(sent)
    except ValidationError as error:
        raise InvalidInput("The change is not as expected.", problems_of(error, sent, TaskPatch.__annotations__)) from None
    if not patch:
        raise InvalidInput("There is nothing to change.", [("", f"expected at least one of {', '.join(TaskPatch.__annotations__)}")])
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in patch.items()}


def apply(connection: Connection, namespace: str, task_id: UUID, patch: Mapping[str, Any]) -> RowMapping:
    """Make a change, all of it or nothing.

    ``status`` stands for a verb: ``cancelled`` for cancel, ``held`` for hold, ``pending`` for release or, on a task that has
    ended, for retry.

    Raises:
        NotFound, IllegalTransition, UniqueConflict: as the verbs do.
    """
    changes = {name: value for name, value in patch.items() if name != "status"}
    status = patch.get("status")
    if status == "pending":
        # Back to life first: fields of a task that has ended do not change.
        ended = queries.task(connection, namespace, task_id).status in TRANSITIONS["retry"]
        row = (lifecycle.retry if ended else lifecycle.release)(connection, namespace, task_id)
        return lifecycle.update(connection, namespace, task_id, changes) if changes else row
    if changes:
        row = lifecycle.update(connection, namespace, task_id, changes)
    if status is not None:
        row = (lifecycle.cancel if status == "cancelled" else lifecycle.hold)(connection, namespace, task_id)
    return row
