"""One run of a handler, one try of a notifier: what a worker would make of it, as a plain value."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack
from uuid import UUID

import structlog
import uuid_utils.compat as uuid7
from pydantic import BaseModel, ValidationError

from taskyard.errors import InvalidInput, LifespanFailed, Outcome, RetryLater, TaskFailed
from taskyard.handlers import Context, Handler, Submission
from taskyard.notifiers import DeliveryContext, Event, Notifier, TaskInfo, check_notifier
from taskyard.outcomes import ending_of, ending_of_timeout, timed_out
from taskyard.payloads import payload_json
from taskyard.storable import escape_pointer
from taskyard.testing.calling import Callee, callee, refuse_running_loop
from taskyard.testing.children import child_check
from taskyard.testing.interrupting import TimeIsUp
from taskyard.testing.recording import LogLine, recording_log
from taskyard.upgrades import read_payload

Progress = tuple[float | None, str | None]


@dataclass(slots=True)
class HandlerRun:
    """How one run ended.

    ``status`` is what the task becomes: ``succeeded``, ``failed``, ``cancelled``, or ``scheduled`` when it would be tried
    again after ``delay`` seconds. ``result`` is JSON, as clients see it. ``error`` is what the handler raised, ``code`` its
    slug. ``submissions`` are empty unless the run succeeded, as in a worker. ``logs`` is what it said to ``ctx.log``. ``events``
    are those of its history from the start of the run to its end, as notifiers get them: ``run_notifier(..., run.events[-1])``.
    """

    status: Literal["succeeded", "failed", "cancelled", "scheduled"]
    result: Any = None
    error: BaseException | None = None
    code: str | None = None
    delay: float | None = None
    progress: list[Progress] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    logs: list[LogLine] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class NotifierRun:
    """How one try ended: ``delivered``, ``retry`` (after ``delay`` seconds, None leaves it to the settings) or ``dead``."""

    status: Literal["delivered", "retry", "dead"]
    detail: str = ""
    error: BaseException | None = None
    delay: float | None = None


@dataclass(slots=True)
class _Recorder:
    """Keeps what a handler reports; can ask the task to stop, as a person would."""

    seen: list[Progress] = field(default_factory=list)
    listener: Callable[[float | None, str | None], None] | None = None

    def progress(self, fraction: float | None, message: str | None) -> None:
        self.seen.append((fraction, message))
        if self.listener is not None:
            self.listener(fraction, message)


class RunOptions(TypedDict, total=False):
    """What :func:`run_handler` takes beside the handler and its payload."""

    config: Any
    attempt: int
    fence: int | None
    task_id: UUID | None
    tags: tuple[str, ...]
    metadata: Mapping[str, Any] | None
    namespace: str
    parent_id: UUID | None
    max_attempts: int | None
    timeout: float | None
    cancelled: bool
    stored: bool
    on_progress: Callable[[float | None, str | None], None] | None
    resources: Mapping[Any, Any] | None
    other_types: Iterable[str]


def run_handler(handler: Handler[Any, Any], payload: Any, **options: Unpack[RunOptions]) -> HandlerRun:
    """Run a handler once, sync or async, and tell how it ended. In an async test: ``await arun_handler(...)``.

    ``payload`` is JSON-able or a model; it is validated as at submission. ``fence`` is the attempt unless it is given; a run
    again after a lost one has the same attempt and a higher fence. ``max_attempts`` and ``timeout`` (seconds) are the
    handler's unless they are given. Timeouts
    interrupt a sync handler only in the main thread, and not where pytest-timeout's alarm by SIGALRM comes first. ``cancelled=True`` runs a task
    that was already asked to stop. ``stored=True`` reads the payload as a worker reads one that was stored long ago: through the handler's ``upgrade``, if
    it does not fit. ``on_progress`` is called with each progress report.

    The lifespans of the handler's plugin that it needs are started for this run, in its loop, and ended after it. ``resources`` has fakes by
    type, such as ``{httpx2.AsyncClient: fake}``; a lifespan all of whose resources are given so, or not asked for, is not started.

    Tasks that the handler submits are checked as by a worker, against the handlers of its plugin and of those that are installed. ``other_types`` are
    types of plugins that are not installed here; any payload fits them.

    Raises:
        RuntimeError: an event loop runs here, and the handler is async.
        InvalidInput: the payload does not fit; carries pointers.
        LifespanFailed: a lifespan that the handler needs did not start.
        InvalidHandler: nobody provides a resource that it asks for.
        TypeError: ``resources`` has one that it does not ask for.
    """
    refuse_running_loop(handler)
    one = _begin(handler, payload, **options)
    if one.over is None:
        try:
            one.over = _settled(one, one.target.call(one.arguments))
        except BaseException as error:
            one.over = _ended(one.target, one.context, error)
    return one.told()


async def arun_handler(handler: Handler[Any, Any], payload: Any, **options: Unpack[RunOptions]) -> HandlerRun:
    """:func:`run_handler` in the running event loop: the handler, and the lifespans that it needs, run in it. A sync handler runs in a thread,
    where its timeouts do not interrupt it.
    """
    one = _begin(handler, payload, **options)
    if one.over is None:
        try:
            one.over = _settled(one, await one.target.acall(one.arguments))
        except BaseException as error:
            one.over = _ended(one.target, one.context, error)
    return one.told()


@dataclass(slots=True)
class _One:
    """A run from its beginning to what is told of it. ``over`` is how it ended, once it has."""

    target: Callee
    context: Context
    recorder: _Recorder
    lines: list[LogLine]
    arguments: tuple[Any, ...] = ()
    over: HandlerRun | None = None

    def told(self) -> HandlerRun:
        assert self.over is not None
        self.over.progress, self.over.logs = self.recorder.seen, self.lines
        self.over.events = _history(self.target.handler, self.context, self.over)
        return self.over


def _begin(
    handler: Handler[Any, Any],
    payload: Any,
    *,
    config: Any = None,
    attempt: int = 1,
    fence: int | None = None,
    task_id: UUID | None = None,
    tags: tuple[str, ...] = (),
    metadata: Mapping[str, Any] | None = None,
    namespace: str = "default",
    parent_id: UUID | None = None,
    max_attempts: int | None = None,
    timeout: float | None = None,
    cancelled: bool = False,
    stored: bool = False,
    on_progress: Callable[[float | None, str | None], None] | None = None,
    resources: Mapping[Any, Any] | None = None,
    other_types: Iterable[str] = (),
) -> _One:
    seconds = handler.timeout if timeout is None else timeout
    recorder = _Recorder(listener=on_progress)
    lines: list[LogLine] = []
    id_ = task_id or uuid7.uuid7()
    ctx = Context(
        task_id=id_,
        type=handler.type,
        attempt=attempt,
        fence=attempt if fence is None else fence,
        tags=tags,
        metadata=metadata or {},
        deadline=(now := datetime.now(UTC)) + timedelta(seconds=seconds),
        soft_deadline=None if (soft := handler.soft_timeout_within(seconds)) is None else now + timedelta(seconds=soft),
        config=config,
        log=recording_log(handler.plugin or "taskyard.testing", lines),
        reporter=recorder,
        namespace=namespace,
        parent_id=parent_id,
        max_attempts=handler.retry.max_attempts if max_attempts is None else max_attempts,
        _check=child_check(handler, config, namespace, id_, other_types),
    )
    if cancelled:
        ctx.cancel()
    one = _One(callee(handler, config, seconds, resources), ctx, recorder, lines)
    try:
        given = read_payload(handler, _as_text(payload)) if stored else _validated(handler, payload)
    except Outcome as error:
        one.over = _ended(one.target, ctx, error)
        return one
    taken: tuple[Any, Any] = (given, ctx) if handler.batch is None else ([given], [ctx])
    one.arguments = taken if handler.wants_context else taken[:1]
    return one


def _settled(one: _One, value: Any) -> HandlerRun:
    """How a run ended whose function has returned this. Raises what makes it end otherwise."""
    handler = one.target.handler
    if handler.batch is not None:
        value = _only_item(value)
    return HandlerRun("succeeded", result=_checked_result(handler, value), submissions=one.context.submissions)


def _history(handler: Handler[Any, Any], ctx: Context, run: HandlerRun) -> list[Event]:
    """The events that a worker would have recorded of this run."""
    tags = tuple(ctx.tags)
    error = None if run.error is None else {"code": run.code, "message": str(run.error), **getattr(run.error, "details", {})}
    told = {"error": None if run.status == "cancelled" else error, "delay": run.delay}
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("started", "running", {"worker": "test", "fence": ctx.fence}),
        *(("progress", "running", {"fraction": fraction, "message": message}) for fraction, message in run.progress),
        ("retrying" if run.status == "scheduled" else run.status, run.status, {name: value for name, value in told.items() if value is not None}),
    ]
    return [
        make_event(
            f"task.{name}",
            id=str(number),
            task_id=ctx.task_id,
            attempt=ctx.attempt,
            data=data,
            task=TaskInfo(ctx.namespace, handler.type, handler.queue, handler.priority, tags, status),
        )
        for number, (name, status, data) in enumerate(steps, 1)
    ]


def _as_text(payload: Any) -> str:
    return json.dumps(payload_json(payload))


def _validated(handler: Handler[Any, Any], payload: Any) -> Any:
    """Through JSON text, as in a worker: a payload that passes here passes there."""
    try:
        return handler.payload.validate_json(_as_text(payload))
    except ValidationError as error:
        problems = [("".join(f"/{escape_pointer(str(part))}" for part in p["loc"]), p["msg"]) for p in error.errors(include_url=False)]
        told = "; ".join(f"{pointer or 'the payload'}: {what}" for pointer, what in problems)
        raise InvalidInput(f"{handler.type} refuses this payload: {told}", problems) from error


def _only_item(value: Any) -> Any:
    """What a batch handler has returned for a batch of one. An exception is raised."""
    if not isinstance(value, list | tuple) or len(value) != 1:
        raise TaskFailed(f"expected a list of one result, not {value!r:.200}", code="invalid-result")
    if isinstance(value[0], BaseException):
        raise value[0]
    return value[0]


def _checked_result(handler: Handler[Any, Any], value: Any) -> Any:
    """The result as clients get it. Raises TaskFailed: it is not of the declared type, or PostgreSQL can't keep it."""
    try:
        return json.loads(handler.dump_result(value))
    except ValueError as error:
        raise TaskFailed(str(error), code="invalid-result") from error


def _ended(target: Callee, ctx: Context, raised: BaseException) -> HandlerRun:
    """What becomes of a task whose run raised, as :mod:`taskyard.outcomes` says. Ctrl-C and pytest's ``fail`` and ``skip`` end the test, not the run."""
    handler, seconds = target.handler, target.timeout
    if isinstance(raised, KeyboardInterrupt | LifespanFailed) or any(kind.__module__ == "_pytest.outcomes" for kind in type(raised).__mro__):
        raise raised
    ending = ending_of(raised, handler.retry, asked_to_stop=ctx.cancelled())
    if isinstance(raised, TimeIsUp):
        ending = ending_of_timeout(raised, timed_out(seconds), handler.retry)
    elif ending.ended == "interrupted" and ending.error is not None:
        ending = ending_of_timeout(ending.cause, ending.error, handler.retry)
    code = (ending.error or {}).get("code")
    if ending.ended == "cancelled":
        return HandlerRun("cancelled", error=ending.cause)
    if ending.ended == "failed" or ctx.attempt >= ctx.max_attempts:
        return HandlerRun("failed", error=ending.cause, code=code)
    # draw=0.5 is the middle of the jitter: tests see the plain back-off.
    delay = handler.retry.delay(ctx.attempt, draw=0.5) if ending.delay is None else ending.delay
    return HandlerRun("scheduled", error=ending.cause, code=code, delay=delay)


def run_notifier(
    notifier: Notifier | type[Notifier],
    options: Mapping[str, Any] | BaseModel | None = None,
    event: Event | None = None,
    *,
    config: Any = None,
    attempt: int = 1,
    delivery_id: str = "dlv_test",
    route: str = "test",
    timeout: float = 30.0,
) -> NotifierRun:
    """Send one event (:func:`make_event`'s, by default) and tell how the try ended. Must not be called from a running event loop.

    ``options`` are a route's, validated by the notifier's model. ``timeout`` is in seconds and ends async notifiers.

    Raises:
        pydantic.ValidationError: the options do not fit.
    """
    made = check_notifier(notifier)
    chosen = options if isinstance(options, BaseModel) else made.Options.model_validate(dict(options or {}), context={"config": config})
    log = structlog.get_logger("taskyard.testing").bind(route=route, delivery_id=delivery_id)
    ctx = DeliveryContext(delivery_id=delivery_id, route=route, attempt=attempt, timeout=timeout, config=config, log=log)
    try:
        said = made.send(event or make_event(), chosen, ctx)
        if inspect.isawaitable(said):
            said = asyncio.run(_awaited(said, timeout))
        return NotifierRun("delivered", detail="" if said is None else str(said))
    except TaskFailed as error:
        return NotifierRun("dead", detail=str(error), error=error)
    except Exception as error:
        return NotifierRun("retry", detail=str(error), error=error, delay=error.delay if isinstance(error, RetryLater) else None)


async def _awaited(said: Any, seconds: float) -> Any:
    async with asyncio.timeout(seconds):
        return await said


def make_event(
    type: str = "task.succeeded",
    *,
    id: str = "1",
    time: datetime | None = None,
    task_id: UUID | None = None,
    attempt: int = 1,
    data: Mapping[str, Any] | None = None,
    task: TaskInfo | None = None,
) -> Event:
    """An event as a notifier would get it."""
    return Event(
        id=id,
        type=type,
        time=time or datetime.now(UTC),
        task_id=task_id or uuid7.uuid7(),
        attempt=attempt,
        data=dict(data or {}),
        task=task or TaskInfo(namespace="default", type="test.task", queue="default", priority=5, status=type.removeprefix("task.")),
    )
