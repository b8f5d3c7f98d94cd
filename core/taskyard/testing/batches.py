"""One call of a batch handler: what a worker would make of each of its tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import uuid_utils.compat as uuid7

from taskyard.errors import LifespanFailed, TaskFailed
from taskyard.handlers import Context, Handler
from taskyard.testing.calling import Callee, callee
from taskyard.testing.recording import LogLine, recording_log
from taskyard.testing.runs import HandlerRun, _checked_result, _ended, _history, _Recorder, _validated


def run_batch(
    handler: Handler[Any, Any],
    payloads: Sequence[Any],
    *,
    config: Any = None,
    attempt: int = 1,
    timeout: float | None = None,
    cancelled: Collection[int] = (),
    resources: Mapping[Any, Any] | None = None,
) -> list[HandlerRun]:
    """Run a batch handler once on several payloads, and tell how each task ended. Must not be called from a running event loop.

    The arguments are those of :func:`taskyard.testing.run_handler`; ``cancelled`` has the positions of tasks that are asked to stop once the
    call has begun.

    Raises:
        InvalidInput: a payload does not fit; carries pointers.
        TypeError: the handler takes no batches.
    """
    if handler.batch is None:
        raise TypeError(f"{handler.type} takes one task at a time: use run_handler")
    seconds = handler.timeout if timeout is None else timeout
    target = callee(handler, config, seconds, resources)
    given = [_validated(handler, payload) for payload in payloads]
    recorders = [_Recorder() for _ in given]
    logs: list[list[LogLine]] = [[] for _ in given]
    contexts = [_context(handler, recorder, lines, config, attempt, seconds) for recorder, lines in zip(recorders, logs, strict=True)]
    for item in cancelled:
        contexts[item].cancel()
    runs = _outcomes(target, given, contexts)
    for run, context, recorder, lines in zip(runs, contexts, recorders, logs, strict=True):
        run.progress, run.logs = recorder.seen, lines
        run.events = _history(handler, context, run)
    return runs


def _context(handler: Handler[Any, Any], recorder: _Recorder, lines: list[LogLine], config: Any, attempt: int, seconds: float) -> Context:
    return Context(
        task_id=uuid7.uuid7(),
        type=handler.type,
        attempt=attempt,
        fence=attempt,
        deadline=(now := datetime.now(UTC)) + timedelta(seconds=seconds),
        soft_deadline=None if (soft := handler.soft_timeout_within(seconds)) is None else now + timedelta(seconds=soft),
        config=config,
        log=recording_log(handler.plugin or "taskyard.testing", lines),
        reporter=recorder,
        max_attempts=handler.retry.max_attempts,
    )


def _outcomes(target: Callee, given: list[Any], contexts: list[Context]) -> list[HandlerRun]:
    handler, seconds = target.handler, target.timeout
    arguments = (given, contexts) if handler.wants_context else (given,)
    try:
        value = target.call(arguments)
    except LifespanFailed:
        raise
    except BaseException as error:
        return [_outcome(handler, context, error, seconds) for context in contexts]
    if not isinstance(value, list | tuple) or len(value) != len(given):
        wrong = TaskFailed(f"expected a list of {len(given)} results, not {value!r:.200}", code="invalid-result")
        return [_outcome(handler, context, wrong, seconds) for context in contexts]
    return [_outcome(handler, context, one, seconds) for context, one in zip(contexts, value, strict=True)]


def _outcome(handler: Handler[Any, Any], context: Context, value: Any, seconds: float) -> HandlerRun:
    """What becomes of one task, from its item: a result, or an exception."""
    try:
        if isinstance(value, BaseException):
            raise value
        return HandlerRun("succeeded", result=_checked_result(handler, value), submissions=context.submissions)
    except BaseException as error:
        return _ended(handler, context, error, seconds)
