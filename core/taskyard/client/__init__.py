"""A client of the REST service, blocking or not. It needs none of the service's parts: ``pip install taskyard`` is enough.

    with Client("http://127.0.0.1:8000") as client:
        page = client.submit(pages.fetch, Fetch(url="https://example.com/")).result(timeout=60)

``pages.fetch`` is a handler, made by :func:`taskyard.handler`; the name of a task type and JSON do as well.
"""

from taskyard.client.clients import AsyncClient, Client
from taskyard.client.errors import (
    ClientError,
    Forbidden,
    IdempotencyMismatch,
    IllegalTransition,
    Internal,
    InvalidRequest,
    NotFound,
    Problem,
    RateLimited,
    TaskUnsuccessful,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    UniqueConflict,
    UnknownTaskType,
    Unreachable,
    VersionConflict,
    WaitTimeout,
)
from taskyard.client.handles import AsyncHandle, Handle
from taskyard.client.models import (
    Changed,
    Checked,
    Delivery,
    Event,
    EventTask,
    LogLine,
    Notifier,
    Page,
    Place,
    Plugin,
    Progress,
    Queue,
    Task,
    TaskError,
    TaskType,
    WouldChange,
)
from taskyard.client.retries import Retries
from taskyard.client.submissions import Changes, DeliveryFilters, Filters, New
from taskyard.task_options import Options, Subscription

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "Changed",
    "Changes",
    "Checked",
    "Client",
    "ClientError",
    "Delivery",
    "DeliveryFilters",
    "Event",
    "EventTask",
    "Filters",
    "Forbidden",
    "Handle",
    "IdempotencyMismatch",
    "IllegalTransition",
    "Internal",
    "InvalidRequest",
    "LogLine",
    "New",
    "NotFound",
    "Notifier",
    "Options",
    "Page",
    "Place",
    "Plugin",
    "Problem",
    "Progress",
    "Queue",
    "RateLimited",
    "Retries",
    "Subscription",
    "Task",
    "TaskError",
    "TaskType",
    "TaskUnsuccessful",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "UniqueConflict",
    "UnknownTaskType",
    "Unreachable",
    "VersionConflict",
    "WaitTimeout",
    "WouldChange",
]
