"""One call of a handler inside a child process: on one task, or on the tasks that a batch handler takes together. Knows no sockets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from taskyard.handlers import Context, Handler
from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard.upgrades import read_payload
from taskyard_worker import loglines, runs
from taskyard_worker.outcomes import unstarted
from taskyard_worker.runs import Job, Report

#: The error of a task whose batch handler has given up for the sake of another one.
NOT_ASKED = {"code": "TaskCancelled", "message": "Its batch handler raised TaskCancelled for all of its batch. This task was not asked to stop."}


#: Gets each line that a task logs.
Keep = Callable[[loglines.Key, str], None]


def put_off(context: Context, seconds: float) -> None:
    """Its deadlines are so many seconds later."""
    if context.deadline is not None:
        context.deadline += timedelta(seconds=seconds)
    if context.soft_deadline is not None:
        context.soft_deadline += timedelta(seconds=seconds)


class Progress(Protocol):
    """How a child tells the engine how far a task is; ``item`` is its place in its batch."""

    def __call__(self, fraction: float | None, message: str | None, item: int | None = None) -> None: ...


class ItemReporter:
    """What one task of a batch says."""

    def __init__(self, say: Progress, item: int | None = None) -> None:
        self._say = say
        self._item = item

    def progress(self, fraction: float | None, message: str | None) -> None:
        """Report progress, as :class:`taskyard.handlers.Reporter`."""
        self._say(fraction, message, self._item)


class Call(Protocol):
    """A call from its job to its report."""

    handler: Handler[Any, Any]

    def arguments(self) -> tuple[Any, ...] | None:
        """What the function is called with; None, if there is nothing to call it for. Raises what reading the payload does."""

    def settle(self, report: Report, value: Any, settings: Settings) -> None:
        """Fill in the report from what the function has returned, or from nothing, if it was not called."""

    def conclude(self, report: Report) -> None:
        """Called last: the report may tell what the function has raised."""

    def cancel(self, item: int | None = None) -> None:
        """All of it was asked to stop, or one task of a batch."""

    def cancelled(self) -> bool:
        """Was all of it asked to stop?"""

    def begin_later(self, seconds: float) -> None:
        """Its time begins so many seconds later than its contexts say."""


def call_of(job: Job, registry: Registry, say: Progress, keep: Keep) -> Call:
    """The call that a job asks for."""
    handler = registry.names[job["type"]]
    return BatchCall(job, handler, registry, say, keep) if job["kind"] == "batch" else SingleCall(job, handler, registry, say, keep)


class SingleCall:
    """A call on one task."""

    def __init__(self, job: Job, handler: Handler[Any, Any], registry: Registry, say: Progress, keep: Keep) -> None:
        self.handler = handler
        self._job = job
        self._context = runs.make_context(job, registry, handler, ItemReporter(say), partial(keep, job["key"]))

    def arguments(self) -> tuple[Any, ...]:
        return runs.arguments(self._job, self.handler, self._context)

    def settle(self, report: Report, value: Any, settings: Settings) -> None:
        runs.record_success(report, self.handler, value, self._context, settings)

    def conclude(self, report: Report) -> None:
        """It is whole."""

    def cancel(self, item: int | None = None) -> None:
        self._context.cancel()

    def cancelled(self) -> bool:
        return self._context.cancelled()

    def begin_later(self, seconds: float) -> None:
        put_off(self._context, seconds)


class BatchCall:
    """A call on the tasks of a batch handler: each has a context, and a report of its own in the call's ``items``.

    One whose payload can't be read, or that was cancelled before the call, is left out of it.
    """

    def __init__(self, job: Job, handler: Handler[Any, Any], registry: Registry, say: Progress, keep: Keep) -> None:
        self.handler = handler
        self._jobs: list[Job] = job["jobs"]
        self._contexts = [
            runs.make_context(one, registry, handler, ItemReporter(say, item), partial(keep, (job["key"], item))) for item, one in enumerate(self._jobs)
        ]
        self._reports: list[Report] = [{} for _ in self._jobs]
        self._called: list[int] = []
        self._cancelled = False

    def arguments(self) -> tuple[Any, ...] | None:
        payloads, contexts = [], []
        for item, (job, context) in enumerate(zip(self._jobs, self._contexts, strict=True)):
            if job.get("cancelled") or context.cancelled():
                self._reports[item] = unstarted("it was cancelled before its batch began")
                continue
            with runs.outcomes(self._reports[item], self.handler.retry, context.cancelled):
                payloads.append(read_payload(self.handler, job["payload"]))
                contexts.append(context)
                self._called.append(item)
        if not self._called:
            return None
        return (payloads, contexts) if self.handler.wants_context else (payloads,)

    def settle(self, report: Report, value: Any, settings: Settings) -> None:
        report.update(outcome="batch", items=self._reports)
        if not self._called:
            return
        if not isinstance(value, list | tuple) or len(value) != len(self._called):
            returned = f"{len(value)} results" if isinstance(value, list | tuple) else f"{type(value).__name__}, which is no list,"
            message = f"Its batch handler returned {returned} for {len(self._called)} tasks; expected one for each, in their order."
            for item in self._called:
                self._reports[item] = {"outcome": "failed", "error": {"code": "invalid-result", "message": message}}
            return
        for item, one in zip(self._called, value, strict=True):
            self._settle_one(item, one, settings)

    def _settle_one(self, item: int, value: Any, settings: Settings) -> None:
        context = self._contexts[item]
        if isinstance(value, BaseException):
            self._reports[item] = runs.reported(value, self.handler.retry, context.cancelled())
            return
        with runs.outcomes(self._reports[item], self.handler.retry, context.cancelled):
            runs.record_success(self._reports[item], self.handler, value, context, settings)

    def conclude(self, report: Report) -> None:
        """What was raised is every called task's, and the others keep their own report. An interruption is told of the whole."""
        if report["outcome"] in ("batch", "interrupted"):
            return
        told = dict(report)
        for item in self._called:
            asked = told["outcome"] != "cancelled" or self._contexts[item].cancelled()
            self._reports[item] = told if asked else {"outcome": "error", "error": NOT_ASKED}
        report.clear()
        report.update(outcome="batch", items=self._reports)

    def cancel(self, item: int | None = None) -> None:
        self._cancelled = self._cancelled or item is None
        for context in self._contexts if item is None else [self._contexts[item]]:
            context.cancel()

    def cancelled(self) -> bool:
        return self._cancelled

    def begin_later(self, seconds: float) -> None:
        for context in self._contexts:
            put_off(context, seconds)
