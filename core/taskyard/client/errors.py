"""What a call through the client may raise, all of it in the tree of :mod:`taskyard.errors`.

TaskyardError
└── ClientError               a call to the service came to nothing
    ├── Unreachable           nobody answered
    ├── UnexpectedAnswer      something answered, and not as Taskyard does
    ├── WaitTimeout           the task has not ended in the time that was given
    ├── TaskUnsuccessful      the task has ended, and has no result: failed, cancelled or expired
    └── Problem               the service refused: a problem document (RFC 9457)
        ├── InvalidRequest    invalid-request
        │   └── UnknownTaskType   unknown-task-type
        ├── Unauthorized      unauthorized
        ├── Forbidden         forbidden
        ├── NotFound          not-found
        ├── IllegalTransition illegal-transition
        ├── VersionConflict   version-conflict
        ├── UniqueConflict    unique-conflict
        ├── IdempotencyMismatch   idempotency-mismatch
        ├── TooLarge          too-large
        ├── RateLimited       rate-limited
        ├── Unavailable       unavailable
        └── Internal          internal

``UnknownTaskType`` and ``UniqueConflict`` are those of :mod:`taskyard.errors` as well: ``except taskyard.UniqueConflict`` takes both the error of
this client and that of :func:`taskyard.submit`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from taskyard import errors
from taskyard.errors import TaskyardError

if TYPE_CHECKING:
    from taskyard.client.models import Task

TYPE_PREFIX = "urn:taskyard:problem:"


class ClientError(TaskyardError):
    """A call to the service came to nothing."""


class Unreachable(ClientError):
    """Nobody answered.

    ``sent`` says whether the request may have reached the service all the same.
    """

    def __init__(self, message: str = "", *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class UnexpectedAnswer(ClientError):
    """Something answered, and not as Taskyard does."""

    def __init__(self, message: str = "", *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class WaitTimeout(ClientError):
    """The task has not ended in the time that was given. ``task`` is how it stands."""

    def __init__(self, task: Task, seconds: float) -> None:
        super().__init__(f"The task {task.id} has not ended in {seconds:g} seconds: it is {task.status}.")
        self.task = task


class TaskUnsuccessful(ClientError):
    """The task has ended, and has no result. ``code`` is for programs, ``message`` for people; ``task`` has the rest."""

    def __init__(self, task: Task) -> None:
        error = task.error
        #: The error's code; where the task has no error, its status (``cancelled``, ``expired``).
        self.code = (error.code if error else None) or task.status
        self.message = (error.message if error else None) or f"the task is {task.status}"
        super().__init__(f"The task {task.id} ({task.type}) is {task.status}: {self.code}: {self.message}")
        self.task = task


class Place(NamedTuple):
    """One place of a request that is wrong, by its JSON pointer (RFC 6901)."""

    pointer: str
    detail: str


class Problem(ClientError):
    """The service refused.

    ``slug`` is for programs. ``errors`` has the places that are wrong; ``members`` all that the document says beside what it must (RFC 9457,
    3.2). ``retry_after`` is in seconds, where the service said when to come back.
    """

    slugs: ClassVar[dict[str, type[Problem]]] = {}

    def __init_subclass__(cls, slug: str) -> None:
        Problem.slugs[slug] = cls

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.slug = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail") or "")
        places = document.get("errors")
        self.errors = tuple(
            Place(str(item.get("pointer", "")), str(item.get("detail", ""))) for item in (places if isinstance(places, list) else ()) if isinstance(item, dict)
        )
        known = ("type", "title", "status", "detail", "instance", "errors")
        self.members = {name: value for name, value in document.items() if name not in known}
        self.retry_after = retry_after
        head = f"{self.title}: {self.detail}" if self.detail else self.title
        # Not super(): next in line may be the same error of taskyard.errors, which makes its message by itself.
        TaskyardError.__init__(self, "\n".join([head, *(f"  {place.pointer}: {place.detail}" for place in self.errors)]))

    def _words(self, name: str) -> tuple[str, ...]:
        value = self.members.get(name)
        return tuple(map(str, value)) if isinstance(value, list) else ()

    def _word(self, name: str) -> str | None:
        value = self.members.get(name)
        return None if value is None else str(value)


class InvalidRequest(Problem, slug="invalid-request"):
    """A value of the request is not as expected: see ``errors``."""


class UnknownTaskType(InvalidRequest, errors.UnknownTaskType, slug="unknown-task-type"):
    """No installed plugin brings this task type. ``near`` are types with a similar name."""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(status, document, retry_after)
        #: Empty, where an earlier version of the service did not say it.
        self.type = self._word("task_type") or ""
        self.near = self._words("near")
        self.problems = self.errors


class Unauthorized(Problem, slug="unauthorized"):
    """An access key is needed, and there was none or a wrong one."""


class Forbidden(Problem, slug="forbidden"):
    """The access key may not do this."""


class NotFound(Problem, slug="not-found"):
    """Nothing has this id here."""


class IllegalTransition(Problem, slug="illegal-transition"):
    """The status does not allow this."""

    @property
    def allowed(self) -> tuple[str, ...]:
        """The verbs that the status allows."""
        return self._words("allowed")

    @property
    def task_status(self) -> str | None:
        """The task's status."""
        return self._word("task_status")


class VersionConflict(Problem, slug="version-conflict"):
    """The task has changed since the caller saw it."""

    @property
    def version(self) -> int | None:
        """The version that it has now."""
        value = self.members.get("version")
        return value if isinstance(value, int) else None


class UniqueConflict(Problem, errors.UniqueConflict, slug="unique-conflict"):
    """A live task already has this unique_key. ``task_id`` is that task's; ``index`` says which task of a batch wanted the key."""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(status, document, retry_after)
        #: Empty, where an earlier version of the service did not say it.
        self.unique_key = self._word("unique_key") or ""
        self.task_id = self._word("task_id") or ""
        self.pointer = self.errors[0].pointer if self.errors else None
        found = re.match(r"/tasks/(\d{1,9})/", self.pointer or "")
        self.index = int(found[1]) if found else 0


class IdempotencyMismatch(Problem, slug="idempotency-mismatch"):
    """This Idempotency-Key was used before, with another body."""


class TooLarge(Problem, slug="too-large"):
    """The request's body is too large."""


class RateLimited(Problem, slug="rate-limited"):
    """Too many requests. Come back after ``retry_after`` seconds."""


class Unavailable(Problem, slug="unavailable"):
    """The service can't do its work now. Come back after ``retry_after`` seconds."""


class Internal(Problem, slug="internal"):
    """Something went wrong in the service."""

    @property
    def id(self) -> str | None:
        """What to look for in the service's log."""
        return self._word("id")


def problem_of(status: int, document: Mapping[str, Any], retry_after: float | None) -> Problem:
    """A problem document as the exception of its slug; of a slug that is not known here, as a plain Problem."""
    slug = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
    return Problem.slugs.get(slug, Problem)(status, document, retry_after)
