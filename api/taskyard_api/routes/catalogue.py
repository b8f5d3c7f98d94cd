"""What is installed: task types, plugins, notifiers. Read from the registry; only the states of routes are the database's to know."""

from __future__ import annotations

import inspect
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Row

from taskyard import routes
from taskyard.errors import NotFound, Unavailable
from taskyard.handlers import Handler
from taskyard.spelling import did_you_mean
from taskyard_api.models import Defaults, NotifierOut, Notifiers, PluginOut, Plugins, RouteState, TaskTypeOut, TaskTypes
from taskyard_api.routes.answers import problems
from taskyard_api.routes.route import Route
from taskyard_api.service import Serving, caller_of

router = APIRouter(tags=["catalogue"], route_class=Route)


def _task_type(handler: Handler[Any, Any]) -> TaskTypeOut:
    return TaskTypeOut(
        type=handler.type,
        aliases=list(handler.aliases),
        description=handler.description,
        plugin=handler.plugin,
        lane="async" if handler.is_async else "sync",
        batch=handler.batch,
        defaults=Defaults(queue=handler.queue, priority=handler.priority, timeout=handler.timeout, max_attempts=handler.retry.max_attempts),
        payload_schema=handler.payload_schema(),
        result_schema=handler.result_schema(),
    )


@router.get("/task-types", responses=problems())
async def list_task_types(service: Serving) -> TaskTypes:
    """List what can be submitted."""
    handlers = service.registry.handlers
    return TaskTypes(items=[_task_type(handlers[type_]) for type_ in sorted(handlers)])


@router.get("/task-types/{type}", responses=problems(404))
async def get_task_type(service: Serving, type: str) -> TaskTypeOut:
    """Look at one task type, under any name that it answers to."""
    names = service.registry.names
    if type not in names:
        raise NotFound(f"No installed plugin brings the task type {type[:200]!r}.{did_you_mean(type, names)}")
    return _task_type(names[type])


@router.get("/plugins", responses=problems())
async def list_plugins(request: Request, service: Serving) -> Plugins:
    """List what is installed, enabled, or failed, and why and where."""
    # A traceback quotes the source: that is for operators.
    caller = caller_of(request)
    traced = caller is None or caller.may("admin")
    found = [
        PluginOut.model_validate(
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "state": plugin.state,
                "reason": plugin.reason,
                "where": plugin.where,
                "traceback": plugin.traceback if traced else None,
                "task_types": sorted(handler.type for handler in plugin.handlers),
                "notifiers": sorted(notifier.name for notifier in plugin.notifiers),
            }
        )
        for plugin in service.registry.plugins
    ]
    return Plugins(items=found)


@router.get("/notifiers", responses=problems())
async def list_notifiers(service: Serving) -> Notifiers:
    """List the notifiers that routes can use, and the routes that use them."""
    try:
        states = await service.read(routes.states)
    except Unavailable:
        states = {}
    configured = service.settings.routes
    found = [
        NotifierOut(
            name=notifier.name,
            plugin=plugin.name,
            description=(inspect.getdoc(type(notifier)) or "").partition("\n")[0],
            routes=[route.name for route in configured if route.notifier == notifier.name],
            route_states=[_state(route.name, states.get(route.name)) for route in configured if route.notifier == notifier.name],
            options_schema=notifier.Options.model_json_schema(),
        )
        for plugin in service.registry.plugins
        for notifier in plugin.notifiers
    ]
    return Notifiers(items=sorted(found, key=lambda notifier: notifier.name))


def _state(name: str, row: Row[Any] | None) -> RouteState:
    if row is None:
        return RouteState(name=name, state="unknown")
    return RouteState(name=name, state="disabled" if row.disabled_at else "enabled", reason=row.disabled_reason, since=row.disabled_at)
