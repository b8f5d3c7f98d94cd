"""Every error that Taskyard raises on purpose, in one tree. Knows no HTTP and no database.

TaskyardError
├── InvalidInput              the caller's input breaks a rule; carries pointers
│   └── UnknownTaskType       no installed plugin brings this type; carries near matches
├── NotFound                  nothing with this id in this namespace
├── IllegalTransition         the task's (or the delivery's) status does not allow this verb
├── VersionConflict           the task has changed since the caller saw it
├── UniqueConflict            a live task already has this unique_key
├── IdempotencyMismatch       an Idempotency-Key was used before, with another body
├── Unavailable               the database can't be reached now
│   └── PluginFailed          the plugin that brings a task type is broken now
├── AddressRefused            an HTTP address is not one of the public internet's
├── ConfigurationError        a setting, a route or a plugin's options are wrong
│   ├── PluginConflict        two plugins claim one name
│   └── IncompatiblePlugin    a plugin is for another version of Taskyard
├── InvalidHandler            a @handler, lifespan or notifier is declared wrongly
├── LifespanFailed            a plugin's lifespan did not start in this process
└── Outcome                   raised by handlers and notifiers to say how a run ended
    ├── RetryLater            run again after a delay
    ├── TaskFailed            failed; do not retry
    └── TaskCancelled         the task was asked to stop

Interrupted                   raised in a handler where it stands; no Exception, see there
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any, Literal


class TaskyardError(Exception):
    """Taskyard could not do this."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class InvalidInput(TaskyardError):
    """The input breaks a rule.

    ``problems`` names each place by its JSON pointer (RFC 6901) and says what was expected there.
    """

    def __init__(self, message: str = "", problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnknownTaskType(InvalidInput):
    """No installed plugin brings this task type. ``failed`` are the plugins that could not be loaded: one of them may."""

    failed: Sequence[str] = ()

    def __init__(self, type_: str, near: Sequence[str] = (), failed: Sequence[str] = ()) -> None:
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        if failed:
            hint += f" Plugins that failed to load here, and may bring it: {', '.join(failed)}."
        super().__init__(f"No installed plugin brings the task type {type_[:200]!r}.{hint}", [("/type", "unknown task type")])
        self.type = type_
        self.near = tuple(near)
        self.failed = tuple(failed)


class NotFound(TaskyardError):
    """Nothing has this id here."""


class IllegalTransition(TaskyardError):
    """The status of a task, or of a delivery, does not allow this verb. ``subject`` says which of the two it is."""

    def __init__(self, verb: str, status: str, allowed: Sequence[str], subject: str = "task") -> None:
        ways = ", ".join(allowed) if allowed else "nothing more"
        super().__init__(f"A {subject} that is {status} can't {verb}; it allows {ways}.")
        self.subject = subject
        self.verb = verb
        self.status = status
        self.allowed = tuple(allowed)


class VersionConflict(TaskyardError):
    """The task has changed since the caller saw it. ``version`` is the one that it has now."""

    def __init__(self, version: int) -> None:
        super().__init__(f"The task has changed meanwhile: it has the version {version} now.")
        self.version = version


class UniqueConflict(TaskyardError):
    """A live task already has this unique_key. ``index`` says which of the tasks that were submitted together wanted it."""

    def __init__(self, unique_key: str, task_id: str, index: int = 0) -> None:
        super().__init__(f"The live task {task_id} already has the unique_key {unique_key!r}.")
        self.unique_key = unique_key
        self.task_id = task_id
        self.index = index
        #: Where the request has the key, as a JSON pointer, if its body is a batch.
        self.pointer: str | None = None


class IdempotencyMismatch(TaskyardError):
    """This Idempotency-Key was used before, with another request body. Take a new key for a new request."""


class Unavailable(TaskyardError):
    """The database can't be reached now."""


class PluginFailed(Unavailable):
    """The plugin that brings this task type has failed to load. The task can be submitted once it is mended."""

    def __init__(self, type_: str, plugin: str) -> None:
        super().__init__(
            f"The plugin {plugin!r}, which brings the task type {type_[:200]!r}, has failed to load on this service. Submit the task again once it is mended."
        )
        self.type = type_
        self.plugin = plugin


class AddressRefused(TaskyardError):
    """An HTTP address is not one of the public internet's."""


class ConfigurationError(TaskyardError):
    """The configuration is wrong."""


class PluginConflict(ConfigurationError):
    """Two plugins claim one name."""


class IncompatiblePlugin(ConfigurationError):
    """A plugin is for another version of Taskyard."""


class InvalidHandler(TaskyardError):
    """A handler, lifespan or notifier is declared wrongly. ``where`` is the place of its function, where nothing else tells it."""

    def __init__(self, message: str = "", where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class LifespanFailed(TaskyardError):
    """A plugin's lifespan did not start in this process. Its tasks are parked, and the start is tried again later."""

    def __init__(self, plugin: str, lifespan: str, reason: str) -> None:
        super().__init__(f"The lifespan {lifespan}{f' of the plugin {plugin}' if plugin else ''} did not start: {reason}")
        self.plugin = plugin
        self.lifespan = lifespan
        self.reason = reason


class Outcome(TaskyardError):
    """Raised by a handler or a notifier to say how its run ended."""


class RetryLater(Outcome):
    """Run again later.

    ``delay`` is in seconds; None leaves it to the policy. It spends an attempt like any other failure, so that a
    task that always asks for more time still ends. ``code`` is a short slug for programs: the ``code`` of the task's error.
    """

    def __init__(self, message: str = "", *, delay: float | None = None, code: str = "retry-later") -> None:
        super().__init__(message or "asked to run again later")
        self.delay = delay
        self.code = code


class TaskFailed(Outcome):
    """Failed, and trying again would not help.

    ``code`` is a short slug for programs; ``details`` (JSON-able) is added to the task's ``error``.
    """

    def __init__(self, message: str = "", *, code: str = "failed", **details: Any) -> None:
        super().__init__(message or "failed")
        self.code = code
        self.details = details


class TaskCancelled(Outcome):
    """The task was asked to stop."""


#: Why a handler is interrupted.
Interruption = Literal["soft-timeout", "timeout", "cancel", "stop", "blocked"]


class Interrupted(BaseException):
    """Raised in a handler where it stands: its time is up, or it was told to stop and has not.

    ``reason`` is ``soft-timeout`` (it may go on, until its ``timeout``), ``timeout``, ``cancel`` (somebody cancelled the task), ``stop`` (the
    worker stops) or ``blocked`` (it blocks the event loop of others).

    No Exception, so that a handler's ``except Exception`` does not swallow it. In an async handler it is an
    :class:`asyncio.CancelledError` too, so that ``TaskGroup``, ``timeout`` and ``finally`` treat it as the cancellation that it is.
    """

    def __init__(self, reason: Interruption = "timeout", message: str = "") -> None:
        super().__init__(message or f"interrupted: {reason}")
        self.reason = reason


class InterruptedAwait(Interrupted, CancelledError):
    """How an :class:`Interrupted` comes to a coroutine."""
