"""One run of a handler or a notifier, inside a child process: from the job to the report. Knows no sockets.

A job is a dict from the engine, a task's payload and metadata in it JSON text; a report is a dict back to it. ``outcome`` in a report
is ``succeeded``, ``error`` (perhaps tried again), ``failed`` (never again), ``cancelled`` or ``unstarted`` (the worker may have been given
up before; see lease.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from taskyard import logs, submission
from taskyard.errors import LifespanFailed, TaskFailed
from taskyard.handlers import Context, Handler, Reporter, Retry, Submission
from taskyard.masking import secrets_in
from taskyard.notifiers import DeliveryContext, Event, Notifier, TaskInfo
from taskyard.outcomes import MAX_TEXT, ending_of
from taskyard.plugins import Registry, route_options
from taskyard.settings import SUBSCRIBED, Route, Settings
from taskyard.storable import from_json, storable_text, to_json
from taskyard.subscriptions import open_to_clients
from taskyard.upgrades import read_payload
from taskyard_worker import loglines
from taskyard_worker.outcomes import parked

log = structlog.get_logger(__name__)

Report = dict[str, Any]
Job = dict[str, Any]


def log_fields(job: Job) -> dict[str, Any]:
    """What every log line about a job has, whoever writes it."""
    if job["kind"] == "batch":
        return {"type": job["type"], "batch": len(job["jobs"])}
    if job["kind"] == "task":
        return {"task_id": job["id"], "type": job["type"], "attempt": job["attempt"], "fence": job["fence"]}
    return {"delivery_id": job["id"], "route": job["route"], "task_id": job["task_id"], "attempt": job["attempt"], "fence": job["fence"]}


def make_context(job: Job, registry: Registry, handler: Handler[Any, Any], reporter: Reporter, keep: Callable[[str], None]) -> Context[Any]:
    """The context that a handler gets. ``keep`` gets each line of its log: see loglines.py."""
    task_id = UUID(job["id"])
    return Context(
        task_id=task_id,
        type=job["type"],
        attempt=job["attempt"],
        fence=job["fence"],
        tags=tuple(job["tags"]),
        metadata=from_json(job["metadata"]) if job["metadata"] != "{}" else {},
        deadline=datetime.fromtimestamp(job["deadline"], UTC),
        soft_deadline=datetime.fromtimestamp(soft, UTC) if (soft := job.get("soft_deadline")) else None,
        config=registry.config_of(handler),
        # Bound when it is first used: most handlers of quick tasks say nothing.
        log=loglines.Late(partial(loglines.logger, handler.type, log_fields(job), keep)),
        reporter=reporter,
        namespace=job["namespace"],
        parent_id=UUID(parent) if (parent := job["parent_id"]) else None,
        max_attempts=job["max_attempts"],
        _check=partial(_child, registry, job["namespace"], task_id),
    )


def arguments(job: Job, handler: Handler[Any, Any], context: Context) -> tuple[Any, ...]:
    """What the handler's function is called with. Raises what :func:`taskyard.upgrades.read_payload` does."""
    # By JSON's rules, as when it was submitted: in strict models they differ from Python's.
    payload = read_payload(handler, job["payload"])
    return (payload, context) if handler.wants_context else (payload,)


@contextmanager
def outcomes(report: Report, retry: Retry, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Turn whatever a plugin's code raises into its report: SystemExit and its kin too, which would end the process and all that runs in it."""
    try:
        yield
    except BaseException as error:
        report.update(reported(error, retry, asked_to_stop()))


def reported(error: BaseException, retry: Retry, asked_to_stop: bool = False) -> Report:
    """What is reported of a run that raised: see :mod:`taskyard.outcomes`. Never raises itself."""
    if isinstance(error, LifespanFailed):
        return parked(storable_text(error, MAX_TEXT))
    ending = ending_of(error, retry, asked_to_stop=asked_to_stop)
    report: Report = {"outcome": "error" if ending.ended == "later" else ending.ended}
    if ending.error is not None:
        report["error"] = ending.error
    if ending.delay is not None:
        report["delay"] = ending.delay
    return report


def record_success(report: Report, handler: Handler[Any, Any], value: Any, context: Context, settings: Settings) -> None:
    """Check a handler's result; it and the tasks that it asked for are stored with its success, or the run has failed."""
    try:
        text = handler.dump_result(value)
    except ValueError as error:
        report.update(outcome="failed", error={"code": "invalid-result", "message": storable_text(error, MAX_TEXT)})
        return
    if len(text) > settings.worker.max_result_bytes:
        message = f"The result has {len(text)} bytes; worker.max_result_bytes allows {settings.worker.max_result_bytes}."
        report.update(outcome="failed", error={"code": "result-too-large", "message": message})
        return
    report.update(outcome="succeeded", result=text, children=[child.row for child in context.submissions])


def _child(registry: Registry, namespace: str, parent: UUID, child: Submission) -> str:
    """A task that a handler asks for, as it will be stored. Raises UnknownTaskType, InvalidInput: in the handler, which may do without it."""
    fields = {**child.options, "type": child.type, "payload": child.payload}
    return to_json(submission.prepare(registry, fields, namespace=namespace, id=child.id, parent_id=parent).row())


def prepare_delivery(job: Job, registry: Registry, settings: Settings) -> tuple[Notifier, Event, Any, DeliveryContext]:
    """What a notifier's ``send`` is called with.

    Raises:
        TaskFailed: the route is not configured any more, or submissions may not name its notifier any more.
        ConfigurationError: its options are wrong.
    """
    configured = (route for route in settings.routes if route.name == job["route"])
    route = _subscription(job, registry, settings) if job["route"].startswith(SUBSCRIBED) else next(configured, None)
    if route is None:
        raise TaskFailed(f"The route {job['route']!r} is not configured here any more.", code="no-route")
    options = route_options(registry, route)
    if job.get("options") is not None:
        logs.hide_lately(secrets_in(options))
    event = make_event(job)
    context = DeliveryContext(
        delivery_id=f"dlv_{job['id']}",
        route=route.name,
        attempt=job["attempt"],
        timeout=settings.deliveries.timeout,
        config=registry.config_of_notifier(route.notifier),
        log=structlog.get_logger(route.notifier).bind(**log_fields(job)),
    )
    return registry.notifiers[route.notifier], event, options, context


def _subscription(job: Job, registry: Registry, settings: Settings) -> Route:
    """What a task's submission asked for, as a route."""
    if job.get("options") is None or job["notifier"] not in open_to_clients(registry, settings.deliveries.subscriptions):
        raise TaskFailed(f"Submissions may not name the notifier {job['notifier']!r} any more.", code="no-route")
    return Route(name=job["route"], notifier=job["notifier"], events=(job["event"],), options=job["options"])


def make_event(told: dict[str, Any]) -> Event:
    """The event that the engine tells of, as plugins see it."""
    return Event(
        id=f"evt_{told['event_id']}",
        type=told["event"],
        time=datetime.fromisoformat(told["time"]),
        task_id=UUID(told["task_id"]),
        attempt=told["task_attempt"],
        data=told["data"],
        outcome=told.get("outcome") or {},
        task=TaskInfo(
            namespace=told["namespace"], type=told["type"], queue=told["queue"], priority=told["priority"], tags=tuple(told["tags"]), status=told["status"]
        ),
    )
