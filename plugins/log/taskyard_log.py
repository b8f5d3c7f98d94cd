"""The notifier ``log``: one structured line for each event."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from taskyard import DeliveryContext, Event, hookimpl


class LogOptions(BaseModel):
    """A route's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Severity of the line.")
    data: bool = Field(True, description="Write the event's data (progress, error, ...) too.")


class Log:
    """Write each event as one line to the worker's log."""

    name: ClassVar[str] = "log"
    Options: ClassVar[type[BaseModel]] = LogOptions

    def send(self, event: Event, options: LogOptions, ctx: DeliveryContext) -> None:
        """Write the line. The event's type is its message."""
        fields: dict[str, Any] = {
            "event_id": event.id,
            "event_time": event.time.isoformat(),
            "task_id": str(event.task_id),
            "task_type": event.task.type,
            "task_status": event.task.status,
            "namespace": event.task.namespace,
            "queue": event.task.queue,
            "priority": event.task.priority,
            "tags": list(event.task.tags),
            "attempt": event.attempt,
        }
        if options.data:
            fields["data"] = event.data
        getattr(ctx.log, options.level)(event.type, **fields)


@hookimpl
def taskyard_notifiers() -> list[type[Log]]:
    return [Log]
