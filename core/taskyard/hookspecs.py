"""The hooks that a plugin may implement, and nothing else.

An implementation takes only the arguments that it wants (pluggy matches them by name).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from taskyard.handlers import Handler
    from taskyard.notifiers import Event

PROJECT = "taskyard"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def taskyard_config() -> type[BaseModel] | None:
    """The Pydantic model of the plugin's own section, ``[plugins.<name>]``."""


@hookspec
def taskyard_handlers(config: Any) -> Sequence[Handler[Any, Any]]:  # type: ignore[empty-body]  # a specification has no body
    """The handlers that the plugin brings. ``config`` is an instance of its model, or None."""


@hookspec
def taskyard_lifespan(config: Any) -> Any:
    """What handlers share in a process, such as an HTTP client or a database pool: a context manager, async or sync, that yields it.

    Its annotation names the types that it yields (one, or a tuple of several); a handler's parameter with the same annotation gets it. Or
    a plain function, which returns a list of such context managers' functions. It is started in each process that runs handlers, before the
    first of them that needs it, and ended when that process stops.
    """


@hookspec
def taskyard_notifiers(config: Any) -> Sequence[Any]:  # type: ignore[empty-body]  # a specification has no body
    """The notifiers that the plugin brings, as classes or instances."""


@hookspec
def taskyard_exposes(config: Any) -> str | None:
    """What whoever may submit tasks can do to the machine or its network by this plugin, as configured: half a sentence, or None for nothing.

    A web service that asks for no keys warns with it when it starts.
    """


@hookspec
def taskyard_task_event(event: Event) -> None:
    """Called in the worker after an event of a task that ran there was committed: to observe, never to change.

    It is called on a thread of its own, in order, without a promise: a worker that dies takes unseen events with it. Use a
    notifier for what must arrive.
    """
