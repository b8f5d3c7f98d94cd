"""`taskyard notifiers test`: a test event to a route now, in this process, from the configuration alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated, Any, get_args
from uuid import UUID, uuid4

import typer
from pydantic import BaseModel

from taskyard import logs
from taskyard.cli.output import AsJson, console, keep_plugins_quiet, say, text, write_json
from taskyard.errors import Outcome, TaskyardError
from taskyard.masking import secrets_in
from taskyard.notifiers import Event, Notifier, TaskInfo
from taskyard.plugins import check_routes, is_waiting, load_plugins, route_options
from taskyard.settings import Route, Settings, load_settings
from taskyard.spelling import did_you_mean
from taskyard.testing import NotifierRun, make_event, run_notifier

#: The types that a route may name, and the digest of a route with `every`.
EVENT_TYPES: tuple[str, ...] = (*get_args(get_args(Route.model_fields["events"].annotation)[0]), "digest")
SAYING = "This is a test: `taskyard notifiers test` sent it, no task has failed."
AFTERWARDS = {"retry": "a delivery would be tried again", "dead": "a delivery would be kept as dead"}


def send_test(
    route: Annotated[str, typer.Argument(help="The route's name.")],
    event: Annotated[str, typer.Option(help="Type of the event. Default: task.failed, or the first that the route wants.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send a test event to a route now, and say what happened; exit with 1 if it was not delivered.

    It runs here, by the configuration that is here: no broker and no worker is asked. Where a database is configured and answers, its audit has the test.
    """
    keep_plugins_quiet()
    settings = load_settings()
    chosen = _find(settings, route)
    wanted = _event_type(event, chosen)
    run = _run(settings, chosen, wanted)
    said = logs.clean(run.detail)
    _record(settings, f"{chosen.name}: {wanted}, {run.status}")
    if as_json:
        write_json({"route": chosen.name, "notifier": chosen.notifier, "event": wanted, "status": run.status, "detail": said, "delay": run.delay})
    elif run.status == "delivered":
        console().print(text(f"route {chosen.name!r} to {chosen.notifier!r}: {wanted} is delivered" + (f": {said}" if run.detail else ".")))
    else:
        say(f"route {chosen.name!r} to {chosen.notifier!r}: {wanted} is not delivered: {said}. By this answer {AFTERWARDS[run.status]}.")
    if run.status != "delivered":
        raise typer.Exit(1)


def _record(settings: Settings, target: str) -> None:
    """Put the test into the audit, where a database is configured and answers. It is sent all the same where none does."""
    if settings.database.url is None:
        return
    try:
        from taskyard import audit
        from taskyard.cli.database import connected
        from taskyard.retrying import transaction

        with connected(settings.database, "test") as engine:
            transaction(engine, audit.record, audit.Actor.at_command_line(), "route.test", target)
    except (TaskyardError, ModuleNotFoundError) as error:
        say(f"The audit has no entry of this test: {error}")


def _find(settings: Settings, name: str) -> Route:
    names = [route.name for route in settings.routes]
    if name not in names:
        known = did_you_mean(name, names) or (
            f" There are: {', '.join(map(repr, names))}." if names else " No route is configured: see [[routes]] in taskyard.toml."
        )
        raise typer.BadParameter(f"there is no route {name!r}.{known}", param_hint="ROUTE")
    return settings.routes[names.index(name)]


def _event_type(named: str, route: Route) -> str:
    if not named:
        return "task.failed" if "task.failed" in route.events else route.events[0]
    if named not in EVENT_TYPES:
        known = did_you_mean(named, EVENT_TYPES) or f" There are: {', '.join(EVENT_TYPES)}."
        raise typer.BadParameter(f"there is no event {named!r}.{known}", param_hint="--event")
    if named not in (*route.events, "digest"):
        say(f"The route {route.name!r} does not want {named}: only this test sends it there.")
    return named


def _run(settings: Settings, route: Route, event: str) -> NotifierRun:
    chosen, number = settings.plugins, settings.routes.index(route)
    registry = load_plugins(only=chosen.only, disabled=chosen.disabled, options=chosen.options, import_timeout=chosen.import_timeout)
    if is_waiting(registry, route):
        failed = "; ".join(f"{plugin.name}: {plugin.failure}" for plugin in registry.plugins if plugin.state == "failed")
        return NotifierRun("retry", f"no plugin that works brings the notifier {route.notifier!r}. Failed: {failed}")
    # Only this route is checked: another one's mistake is no reason not to try it.
    check_routes(registry, [route], lambda key: settings.place(("routes", str(number), *key[2:])))
    config, options = registry.config_of_notifier(route.notifier), route_options(registry, route)
    logs.hide(secrets_in([config, options]))
    # From here on what notifiers log is part of the answer: the notifier `log` says nothing else.
    logs.configure(settings.log)
    how = {"config": config, "delivery_id": f"dlv_test_{uuid4().hex}", "route": route.name}
    return _within(settings.deliveries.timeout, registry.notifiers[route.notifier], options, _event(route, event), how)


def _within(seconds: float, notifier: Notifier, options: BaseModel, event: Event, how: Mapping[str, Any]) -> NotifierRun:
    """One try, ended after ``seconds``. In a thread: one that hangs is left behind with this process."""
    ended: list[NotifierRun] = []

    def attempt() -> None:
        try:
            ended.append(run_notifier(notifier, options, event, timeout=seconds, **how))
        except BaseException as error:  # SystemExit too, as in a worker
            ended.append(NotifierRun("retry", error=error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    run = ended[0] if ended else NotifierRun("retry", f"the notifier did not answer within {seconds:g} s")
    if run.error is not None and not isinstance(run.error, Outcome):
        run.detail = f"{type(run.error).__name__}: {run.error}".removesuffix(": ")
    return run


def _event(route: Route, type_: str) -> Event:
    """An event that this route would want: of a task, or of none."""
    if not type_.startswith("task."):
        counts = [{"event": wanted, "type": "", "count": 1} for wanted in route.events]
        data: dict[str, Any] = {"route": route.name, "count": len(counts), "counts": counts, "events": []} if type_ == "digest" else {"message": SAYING}
        return make_event(type_, id=f"evt_test_{uuid4().hex}", task_id=UUID(int=0), attempt=0, data=data, task=TaskInfo("default", "", "", 0))
    status = type_.removeprefix("task.")
    task = TaskInfo(
        namespace="default",
        type=next((name for name in route.types or () if not any(sign in name for sign in "*?[")), "taskyard.test"),
        queue=next(iter(route.queues or ()), "default"),
        priority=max(5, route.min_priority),
        tags=tuple(route.tags or ())[:1],
        status=status if status in ("succeeded", "failed", "cancelled", "expired") else "running",
    )
    told = {"error": {"code": "test", "message": SAYING}} if type_ in ("task.failed", "task.retrying") else {"message": SAYING}
    return make_event(type_, id=f"evt_test_{uuid4().hex}", data={"status": task.status, **told}, task=task)
