"""One call of a batch handler: what a worker would make of each of its tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack

import uuid_utils.compat as uuid7

from taskyard.errors import TaskFailed
from taskyard.handlers import Context, Handler
from taskyard.testing.calling import Callee, callee, refuse_running_loop
from taskyard.testing.children import child_check
from taskyard.testing.recording import LogLine, recording_log
from taskyard.testing.runs import HandlerRun, _checked_result, _ended, _history, _Recorder, _validated


class BatchOptions(TypedDict, total=False):
    """What :func:`run_batch` takes beside the handler and its payloads."""

    config: Any
    attempt: int
    timeout: float | None
    cancelled: Collection[int]
    resources: Mapping[Any, Any] | None
    other_types: Iterable[str]


def run_batch(handler: Handler[Any, Any], payloads: Sequence[Any], **options: Unpack[BatchOptions]) -> list[HandlerRun]:
    """Run a batch handler once on several payloads, and tell how each task ended. In an async test: ``await arun_batch(...)``.

    The arguments are those of :func:`taskyard.testing.run_handler`; ``cancelled`` has the positions of tasks that are asked to stop once the
    call has begun.

    Raises:
        RuntimeError: an event loop runs here, and the handler is async.
        InvalidInput: a payload does not fit; carries pointers.
        TypeError: the handler takes no batches.
    """
    refuse_running_loop(handler)
    many = _begin(handler, payloads, **options)
    try:
        value = many.target.call(many.arguments)
    except BaseException as error:
        return many.raised(error)
    return many.returned(value)


async def arun_batch(handler: Handler[Any, Any], payloads: Sequence[Any], **options: Unpack[BatchOptions]) -> list[HandlerRun]:
    """:func:`run_batch` in the running event loop: the handler, and the lifespans that it needs, run in it. A sync handler runs in a thread."""
    many = _begin(handler, payloads, **options)
    try:
        value = await many.target.acall(many.arguments)
    except BaseException as error:
        return many.raised(error)
    return many.returned(value)


@dataclass(slots=True)
class _Many:
    """One call on several tasks, from its beginning to what is told of each."""

    target: Callee
    contexts: list[Context]
    recorders: list[_Recorder]
    logs: list[list[LogLine]]
    arguments: tuple[Any, ...]

    def raised(self, error: BaseException) -> list[HandlerRun]:
        """Each task has the call's error."""
        return self._told([_ended(self.target, context, error) for context in self.contexts])

    def returned(self, value: Any) -> list[HandlerRun]:
        """Each task has its item."""
        if not isinstance(value, list | tuple) or len(value) != len(self.contexts):
            return self.raised(TaskFailed(f"expected a list of {len(self.contexts)} results, not {value!r:.200}", code="invalid-result"))
        return self._told([_outcome(self.target, context, one) for context, one in zip(self.contexts, value, strict=True)])

    def _told(self, runs: list[HandlerRun]) -> list[HandlerRun]:
        for run, context, recorder, lines in zip(runs, self.contexts, self.recorders, self.logs, strict=True):
            run.progress, run.logs = recorder.seen, lines
            run.events = _history(self.target.handler, context, run)
        return runs


def _begin(
    handler: Handler[Any, Any],
    payloads: Sequence[Any],
    *,
    config: Any = None,
    attempt: int = 1,
    timeout: float | None = None,
    cancelled: Collection[int] = (),
    resources: Mapping[Any, Any] | None = None,
    other_types: Iterable[str] = (),
) -> _Many:
    if handler.batch is None:
        raise TypeError(f"{handler.type} takes one task at a time: use run_handler")
    seconds = handler.timeout if timeout is None else timeout
    target = callee(handler, config, seconds, resources)
    given = [_validated(handler, payload) for payload in payloads]
    recorders = [_Recorder() for _ in given]
    logs: list[list[LogLine]] = [[] for _ in given]
    contexts = [_context(target, recorder, lines, attempt, tuple(other_types)) for recorder, lines in zip(recorders, logs, strict=True)]
    for item in cancelled:
        contexts[item].cancel()
    return _Many(target, contexts, recorders, logs, (given, contexts) if handler.wants_context else (given,))


def _context(target: Callee, recorder: _Recorder, lines: list[LogLine], attempt: int, other_types: tuple[str, ...]) -> Context:
    handler, id_ = target.handler, uuid7.uuid7()
    return Context(
        task_id=id_,
        type=handler.type,
        attempt=attempt,
        fence=attempt,
        deadline=(now := datetime.now(UTC)) + timedelta(seconds=target.timeout),
        soft_deadline=None if target.soft_timeout is None else now + timedelta(seconds=target.soft_timeout),
        config=target.config,
        log=recording_log(handler.plugin or "taskyard.testing", lines),
        reporter=recorder,
        max_attempts=handler.retry.max_attempts,
        _check=child_check(handler, target.config, "default", id_, other_types),
    )


def _outcome(target: Callee, context: Context, value: Any) -> HandlerRun:
    """What becomes of one task, from its item: a result, or an exception."""
    try:
        if isinstance(value, BaseException):
            raise value
        return HandlerRun("succeeded", result=_checked_result(target.handler, value), submissions=context.submissions)
    except BaseException as error:
        return _ended(target, context, error)
