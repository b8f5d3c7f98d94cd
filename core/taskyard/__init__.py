"""Taskyard: typed background tasks, kept in Postgres, dispatched through Celery, done by plugins.

What is exported here is what plugin authors import; it is the public interface.
"""

from taskyard.pythons import is_run_as, leave_out_current_folder

if is_run_as(__name__):
    # Before anything else is imported.
    leave_out_current_folder()

from typing import TYPE_CHECKING, Any

from taskyard.errors import (
    AddressRefused,
    ConfigurationError,
    Interrupted,
    InvalidHandler,
    InvalidInput,
    LifespanFailed,
    RetryLater,
    TaskCancelled,
    TaskFailed,
    TaskyardError,
    UniqueConflict,
    UnknownTaskType,
)
from taskyard.handlers import Context, Handler, Retry, handler
from taskyard.hookspecs import hookimpl
from taskyard.notifiers import DeliveryContext, Event, Notifier, TaskInfo
from taskyard.templates import HtmlTemplate, LineTemplate, MarkdownTemplate, TextTemplate
from taskyard.transactional import SubmittedTask, submit, submit_async

if TYPE_CHECKING:
    from taskyard.outbound import http_client, read_limited, retry_after

__version__ = "0.1.0"

__all__ = [
    "AddressRefused",
    "ConfigurationError",
    "Context",
    "DeliveryContext",
    "Event",
    "Handler",
    "HtmlTemplate",
    "Interrupted",
    "InvalidHandler",
    "InvalidInput",
    "LifespanFailed",
    "LineTemplate",
    "MarkdownTemplate",
    "Notifier",
    "Retry",
    "RetryLater",
    "SubmittedTask",
    "TaskCancelled",
    "TaskFailed",
    "TaskInfo",
    "TaskyardError",
    "TextTemplate",
    "UniqueConflict",
    "UnknownTaskType",
    "__version__",
    "handler",
    "hookimpl",
    "http_client",
    "read_limited",
    "retry_after",
    "submit",
    "submit_async",
]

if not TYPE_CHECKING:  # To a type checker it would say that there is every name.

    def __getattr__(name: str) -> Any:
        """The HTTP client is loaded by whoever asks for it (PEP 562): most processes never do, and it takes nearly as long as all else here."""
        if name not in ("http_client", "read_limited", "retry_after"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from taskyard import outbound

        return getattr(outbound, name)
