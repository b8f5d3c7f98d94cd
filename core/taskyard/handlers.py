"""What plugins write against: the ``@handler`` decorator, retry policies and the context of a run."""

from __future__ import annotations

import functools
import inspect
import json
import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Concatenate, Generic, Protocol, TypeVar, Unpack, overload
from uuid import UUID

import uuid_utils.compat as uuid7
from pydantic import TypeAdapter
from typing_extensions import TypeVar as DefaultTypeVar

from taskyard.errors import Interrupted, InvalidHandler, Outcome, TaskCancelled
from taskyard.functions import body_of, is_async, unwrapped
from taskyard.payloads import payload_json
from taskyard.schemas import schema_of
from taskyard.signatures import read_signature
from taskyard.storable import find_nulled, find_unstorable_json, from_json, storable_text
from taskyard.task_options import Options, in_process

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class UntypedConfig(Any):  # type: ignore[misc]  # the point: compatible with everything
    """What ``ctx.config`` is to a type checker under a plain ``Context``: whatever it is used as.

    Not ``Any`` itself: mypy would not tell the overloads for async and plain handlers apart.
    """


#: The model of a plugin's configuration.
ConfigT = DefaultTypeVar("ConfigT", default=UntypedConfig)
#: From a stored payload, as JSON, to one of today's shape, as JSON.
Upgrade = Callable[[Any], Any]

#: Characters of a progress message.
MAX_MESSAGE = 1000
#: Longest wait, in seconds: ten years.
MAX_DELAY = 10 * 366 * 86400.0
#: A task type's name: dotted lower-case words, such as ``pages.fetch``.
TYPE_PATTERN = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)*")
#: A queue's name. It becomes part of a broker queue's name, so the alphabet is narrow.
QUEUE_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


#: One class of exceptions, or several.
ErrorClasses = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is tried again: exponential back-off, capped, with jitter.

    All times are in seconds. ``delay`` is a pure decision; the caller may draw the random number.

    ``on`` are the classes of exceptions that are tried again (None: all), ``never`` those that are not, although ``on`` has them; one class, or
    a tuple. Subclasses count. A timeout counts as a :class:`TimeoutError`. What a handler raises to say it itself (``RetryLater``,
    ``TaskFailed``, ``TaskCancelled``) is not asked about.
    """

    max_attempts: int = 5
    base: float = 2.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.2
    on: ErrorClasses | None = None
    never: ErrorClasses = ()

    def __post_init__(self) -> None:
        for name, classes in (("on", self.on), ("never", self.never)):
            _check_classes(name, classes)
        if not 1 <= self.max_attempts <= 1000:
            raise InvalidHandler(f"Retry(max_attempts={self.max_attempts}): expected 1 to 1000")
        if not (0 <= self.base <= MAX_DELAY and 1 <= self.factor < math.inf and 0 <= self.max_delay <= MAX_DELAY and 0 <= self.jitter <= 1):
            raise InvalidHandler("Retry: expected base >= 0, factor >= 1, max_delay >= 0 (at most ten years each) and jitter from 0 to 1")

    def allows(self, error: BaseException) -> bool:
        """May a run that raised this, unexpectedly, be tried again, if attempts are left?"""
        return (self.on is None or isinstance(error, self.on)) and not isinstance(error, self.never)

    def delay(self, attempt: int, draw: float | None = None) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (1 is the first).

        ``draw`` is uniform in [0, 1); it moves the delay by up to ``jitter`` of itself either way, so that tasks that
        failed together do not come back together.
        """
        try:
            plain = min(self.base * self.factor ** (attempt - 1), self.max_delay)
        except OverflowError:
            plain = self.max_delay
        spread = (random.random() if draw is None else draw) * 2 - 1
        return plain * (1 + self.jitter * spread)


def _check_classes(name: str, classes: Any) -> None:
    for one in classes if isinstance(classes, tuple) else () if classes is None else (classes,):
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise InvalidHandler(f"Retry({name}={classes!r}): expected an exception class, or a tuple of them; {one!r} is none")
        if issubclass(one, Outcome | Interrupted):
            hint = "a timeout counts as TimeoutError" if issubclass(one, Interrupted) else "a handler that raises it has said itself what comes next"
            raise InvalidHandler(f"Retry({name}={classes!r}): leave {one.__name__} out; {hint}")


class Reporter(Protocol):
    """Where a context sends what its handler says while it runs."""

    def progress(self, fraction: float | None, message: str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """A task that a handler asked for with :meth:`Context.submit`."""

    id: UUID
    type: str
    payload: Any
    options: dict[str, Any]
    #: The task as it will be stored, as JSON text: what the handler changes afterwards changes nothing. None where nobody checks.
    row: str | None = None


@dataclass(slots=True)
class Context(Generic[ConfigT]):
    """What a handler knows about its run, and what it can say while it runs.

    ``(task_id, fence)`` names this run and no other: hand it to outside systems to make effects idempotent.
    ``attempt`` is the number that people see, ``max_attempts`` the last one. ``parent_id`` is the task whose handler submitted this one.
    ``deadline`` is when the timeout ends the run, ``soft_deadline`` when its handler's soft timeout interrupts it. ``config`` is the plugin's
    configuration, typed where the annotation says its model: ``ctx: Context[MyConfig]``.
    """

    task_id: UUID
    type: str
    attempt: int = 1
    fence: int = 1
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    deadline: datetime | None = None
    config: ConfigT = None  # type: ignore[assignment]  # that of a plugin without one
    log: Any = None
    reporter: Reporter | None = None
    submissions: list[Submission] = field(default_factory=list)
    namespace: str = "default"
    parent_id: UUID | None = None
    max_attempts: int = 1
    soft_deadline: datetime | None = None
    _cancelled: bool = False
    _check: Callable[[Submission], str] | None = None

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Tell how far the work is: ``fraction`` from 0 to 1, ``message`` for people (1,000 characters). Never blocks."""
        if fraction is not None:
            fraction = min(1.0, max(0.0, float(fraction)))
        if self.reporter is not None:
            self.reporter.progress(fraction, None if message is None else storable_text(message, MAX_MESSAGE))

    def cancelled(self) -> bool:
        """Has somebody asked this task to stop? Long sync handlers look now and then."""
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Raise :class:`TaskCancelled` if somebody asked this task to stop."""
        if self._cancelled:
            raise TaskCancelled()

    @overload
    def submit(self, type: Handler[P, Any], payload: P, **options: Unpack[Options]) -> UUID: ...
    @overload
    def submit(self, type: str, payload: Any, **options: Unpack[Options]) -> UUID: ...
    def submit(self, type: str | Handler[Any, Any], payload: Any, **options: Unpack[Options]) -> UUID:
        """Ask for another task, and get its id.

        It is submitted in the transaction that records this run's success: a run that fails or is retried leaves no
        children. ``options`` are those of ``POST /tasks`` (priority, queue, tags, ...).

        Raises:
            UnknownTaskType, InvalidInput: it can't be submitted; a handler that lets this through has failed as ``invalid-submission``.
        """
        name = type.type if isinstance(type, Handler) else type
        child = Submission(uuid7.uuid7(), name, payload_json(payload), in_process(options))
        if self._check is not None:
            child = replace(child, row=self._check(child))
        self.submissions.append(child)
        return child.id

    def cancel(self) -> None:
        """Mark this run as asked to stop. Called by the worker and by tests."""
        self._cancelled = True


@dataclass(frozen=True)
class Handler(Generic[P, R_co]):
    """A task type and the function that does its work. Made by :func:`handler`; calling it calls the function."""

    type: str
    function: Callable[..., Any]
    payload: TypeAdapter[P]
    result: TypeAdapter[R_co]
    retry: Retry
    timeout: float
    queue: str
    priority: int
    description: str
    is_async: bool
    wants_context: bool
    bundle: int | None = None
    plugin: str = ""
    aliases: tuple[str, ...] = ()
    upgrade: Upgrade | None = None
    #: Tasks that one call takes at most; the function takes lists then. None: one task, one call.
    batch: int | None = None
    #: Further parameters of the function, each with the annotation of the resource that it gets: see :mod:`taskyard.lifespans`.
    resources: tuple[tuple[str, Any], ...] = ()
    #: Seconds after which the function is interrupted once, and may tidy up.
    soft_timeout: float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def lane(self) -> str:
        """``async`` runs as a coroutine among many; ``sync`` has a process to itself."""
        return "async" if self.is_async else "sync"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it answers to: its type, and the ones that it had before."""
        return (self.type, *self.aliases)

    def soft_timeout_within(self, timeout: float) -> float | None:
        """The soft timeout of a task whose timeout this is: the same part of it as in the handler."""
        return None if self.soft_timeout is None else self.soft_timeout * timeout / self.timeout

    def owned_by(self, plugin: str) -> Handler[P, R_co]:
        """The same handler, marked with the plugin that brought it."""
        return replace(self, plugin=plugin)

    def payload_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the payload, as clients send it. Raises :class:`taskyard.schemas.UnusableSchema`."""
        schema: dict[str, Any] = json.loads(self._payload_schema)
        return schema

    def result_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the result, as clients see it. Raises :class:`taskyard.schemas.UnusableSchema`."""
        schema: dict[str, Any] = json.loads(self._result_schema)
        return schema

    # Built once, and kept as text: a model's own hooks may answer otherwise the next time, or raise, and nobody's changes reach another.
    @functools.cached_property
    def _payload_schema(self) -> str:
        return json.dumps(schema_of(self.payload, "validation"))

    @functools.cached_property
    def _result_schema(self) -> str:
        return json.dumps(schema_of(self.result, "serialization"))

    def dump_result(self, value: Any) -> str:
        """The result as JSON text, checked against its declared type, and for what Postgres keeps.

        Raises:
            ValueError: it is not of that type, or can't be kept.
        """
        try:
            result = self.result.validator.validate_python(value)
            text = self.result.serializer.to_json(result, by_alias=True, warnings="error").decode()
            problem = find_unstorable_json(text)
            # JSON has no NaN, and Pydantic writes null for it.
            if problem is None and "null" in text:
                problem = find_nulled(self.result.serializer.to_python(result, by_alias=True), from_json(text))
        except Exception as error:  # Pydantic raises many kinds, and a model's own validators any
            raise ValueError(f"the result is not of the declared type: {storable_text(error, 4000)}") from error
        if problem:
            raise ValueError(f"the result can't be stored: {problem[0] or 'the whole'}: {problem[1]}")
        return text


class Declaration(Protocol):
    """The decorator that :func:`handler` makes. It keeps the types of payload and result: type checkers know what a client's task results in."""

    @overload
    def __call__(self, function: Callable[[P], Awaitable[R]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[P, Context[Any]], Awaitable[R]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[P], R]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[P, Context[Any]], R]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[P, ...], Awaitable[R]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[P, ...], R]) -> Handler[P, R]: ...


class BatchDeclaration(Protocol):
    """The decorator of a batch handler: its lists are of the payload that clients send, and of the result that they get."""

    @overload
    def __call__(self, function: Callable[[list[P]], Awaitable[Sequence[R | Exception]]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[list[P], list[Context[Any]]], Awaitable[Sequence[R | Exception]]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[list[P]], Sequence[R | Exception]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[[list[P], list[Context[Any]]], Sequence[R | Exception]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[list[P], ...], Awaitable[Sequence[R | Exception]]]) -> Handler[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[list[P], ...], Sequence[R | Exception]]) -> Handler[P, R]: ...


@overload
def handler(
    type: str,
    *,
    retry: Retry | None = None,
    timeout: float = 3600.0,
    soft_timeout: float | None = None,
    queue: str = "default",
    priority: int = 5,
    bundle: int | None = None,
    aliases: Iterable[str] = (),
    upgrade: Upgrade | None = None,
    batch: None = None,
) -> Declaration: ...
@overload
def handler(
    type: str,
    *,
    retry: Retry | None = None,
    timeout: float = 3600.0,
    soft_timeout: float | None = None,
    queue: str = "default",
    priority: int = 5,
    aliases: Iterable[str] = (),
    upgrade: Upgrade | None = None,
    batch: int,
) -> BatchDeclaration: ...
def handler(
    type: str,
    *,
    retry: Retry | None = None,
    timeout: float = 3600.0,
    soft_timeout: float | None = None,
    queue: str = "default",
    priority: int = 5,
    bundle: int | None = None,
    aliases: Iterable[str] = (),
    upgrade: Upgrade | None = None,
    batch: int | None = None,
) -> Declaration | BatchDeclaration:
    """Declare a function as the handler of a task type.

    The first parameter is the payload, and its annotation is what payloads are validated against; a second one that is annotated
    :class:`Context` (or not at all) gets the context. Each further parameter gets the resource of its annotation's type, from the plugin's
    ``taskyard_lifespan``. The return annotation is the result's type. ``timeout`` is in seconds and ends the run.
    With ``soft_timeout`` (seconds, below the timeout) an :class:`Interrupted` is raised in the function at that time, once: it may tidy up and
    return, which is a success, or let it through, which counts as its timeout. A task that was submitted with another timeout has the same
    part of it as its soft one.
    Without ``retry`` a failed run is not tried again (unless the task was submitted with ``max_attempts``).
    Short tasks travel through the broker together, as their measured time allows; ``bundle`` is a bound on how many, and 1
    turns it off.

    ``aliases`` are names that the type had before: tasks under them are taken and run as well. ``upgrade`` brings a stored payload of an
    older shape into today's: see :mod:`taskyard.upgrades`.

    With ``batch`` one call takes up to so many tasks: the function gets a list of payloads, and of contexts if it wants them, and returns a list
    with one item for each, in their order: a result, or an exception that ends that task alone. Nothing waits for a batch to fill.

    Raises:
        InvalidHandler: a name, number or annotation is not as expected.
    """
    aliases = (aliases,) if isinstance(aliases, str) else tuple(aliases)
    for name in (type, *aliases):
        if not TYPE_PATTERN.fullmatch(name) or len(name) > 200:
            raise InvalidHandler(f"@handler({name!r}): a task type is dotted lower-case words, such as 'pages.fetch'")
    if len({type, *aliases}) != 1 + len(aliases):
        raise InvalidHandler(f"@handler({type!r}, aliases={list(aliases)}): expected each name once, and not the type's own")
    if upgrade is not None and (not callable(upgrade) or is_async(upgrade)):
        raise InvalidHandler(f"@handler({type!r}, upgrade={upgrade!r}): expected a function, not a coroutine, from a stored payload to one of today's shape")
    if not QUEUE_PATTERN.fullmatch(queue):
        raise InvalidHandler(f"@handler({type!r}, queue={queue!r}): a queue is lower-case letters, digits, - and _")
    if not 0 <= priority <= 9:
        raise InvalidHandler(f"@handler({type!r}, priority={priority}): expected 0 to 9")
    if not 0 < timeout <= 30 * 86400:
        raise InvalidHandler(f"@handler({type!r}, timeout={timeout}): expected seconds, above 0 and at most 30 days")
    if soft_timeout is not None and not 0 < soft_timeout < timeout:
        raise InvalidHandler(f"@handler({type!r}, soft_timeout={soft_timeout}): expected seconds, above 0 and below the timeout of {timeout:g}")
    for name, number in (("bundle", bundle), ("batch", batch)):
        if number is not None and not 1 <= number <= 1000:
            raise InvalidHandler(f"@handler({type!r}, {name}={number}): expected 1 to 1000, or nothing")
    if bundle is not None and batch is not None:
        raise InvalidHandler(f"@handler({type!r}, bundle={bundle}, batch={batch}): a batch travels together as it is; leave bundle out")

    def declare(function: Callable[..., Any]) -> Handler[Any, Any]:
        function = function.__func__ if isinstance(function, staticmethod) else function
        if isinstance(function, Handler):
            raise InvalidHandler(f"@handler({type!r}): that is the handler of {function.type!r} already; a second name of a type stands in aliases")
        payload, result, wants_context, resources = read_signature(type, function, Context, many=batch is not None)
        return Handler(
            type=type,
            function=function,
            payload=payload,
            result=result,
            # A handler that says nothing about retries may not bear being run twice.
            retry=retry or Retry(max_attempts=1),
            timeout=float(timeout),
            soft_timeout=None if soft_timeout is None else float(soft_timeout),
            queue=queue,
            priority=priority,
            description=(inspect.getdoc(unwrapped(function)) or inspect.getdoc(body_of(function)) or "").partition("\n")[0],
            is_async=is_async(function),
            wants_context=wants_context,
            bundle=bundle,
            aliases=aliases,
            upgrade=upgrade,
            batch=batch,
            resources=resources,
        )

    return declare
