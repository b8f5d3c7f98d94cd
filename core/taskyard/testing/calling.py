"""How the testing kit calls a handler: with the resources of its plugin's lifespans, or with fakes, and within its time."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import importlib_metadata

from taskyard import functions
from taskyard.distributions import entry_points
from taskyard.handlers import Handler
from taskyard.lifespans import Lifespan, bound, check_resources, needed, opened, opened_here, read_lifespans, shown
from taskyard.plugins import GROUP
from taskyard.testing.interrupting import interrupted, interrupted_here


@dataclass(frozen=True, slots=True)
class Callee:
    """A handler, and what it is called with beside its arguments. ``given`` are resources that stand in for those of lifespans, by type."""

    handler: Handler[Any, Any]
    config: Any
    timeout: float
    given: Mapping[Any, Any]
    lifespans: Sequence[Lifespan]

    @property
    def soft_timeout(self) -> float | None:
        """Seconds after which it is interrupted once; None: it is not."""
        return self.handler.soft_timeout_within(self.timeout)

    def call(self, arguments: Sequence[Any]) -> Any:
        """What the function returns, or raises.

        Raises:
            LifespanFailed: a lifespan that it needs did not start.
        """
        if self.handler.is_async:
            return asyncio.run(self.acall(arguments))
        with opened_here(self.lifespans, self.config) as values:
            function = bound(self.handler, {**values, **self.given}).function
            return interrupted_here(lambda: functions.call(function, *arguments), self.timeout, self.soft_timeout)

    async def acall(self, arguments: Sequence[Any]) -> Any:
        """:meth:`call` in the running event loop. A sync function runs in a thread, where there is none, as in a worker."""
        async with opened(self.lifespans, self.config) as values:
            function = bound(self.handler, {**values, **self.given}).function
            if not self.handler.is_async:
                return await functions.call_in_thread(function, *arguments)
            return await interrupted(function(*arguments), self.timeout, self.soft_timeout)


def callee(handler: Handler[Any, Any], config: Any, timeout: float, resources: Mapping[Any, Any] | None) -> Callee:
    """A handler that can be called.

    Raises:
        InvalidHandler: nobody provides a resource that it asks for.
        TypeError: ``resources`` has one that it does not ask for.
    """
    given, asked = dict(resources or {}), dict(handler.resources)
    if odd := [key for key in given if key not in asked.values()]:
        raise TypeError(f"{handler.type} asks for no resource {shown(odd[0])}; it asks for {', '.join(map(shown, asked.values())) or 'none'}")
    hook = next(hooks_near("taskyard_lifespan", handler, thorough=len(given) < len(asked)), None)
    lifespans = read_lifespans(handler.plugin, hook, config) if hook else []
    check_resources([replace(handler, resources=tuple((name, key) for name, key in asked.items() if key not in given))], lifespans)
    return Callee(handler, config, timeout, given, needed(handler, lifespans, replaced=given))


def refuse_running_loop(handler: Handler[Any, Any]) -> None:
    """Raise RuntimeError if an async handler can't be run here, because an event loop runs already."""
    if not handler.is_async:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"An event loop runs here. In an async test, run {handler.type} with `await arun_handler(...)` or `await arun_batch(...)`.")


def hooks_near(name: str, handler: Handler[Any, Any], *, thorough: bool) -> Iterator[Callable[..., Any]]:
    """The implementations of a hook by the plugin that brings a handler: in its module, in a package above, or (``thorough``) where its entry point is."""
    function = inspect.unwrap(functions.body_of(handler.function))
    parts = function.__module__.split(".")
    above = (sys.modules.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    places = [getattr(function, "__globals__", {}), *(vars(module) for module in above if module)]
    yield from (names[name] for names in places if name in names)
    if thorough:
        own: list[importlib_metadata.EntryPoint] = [entry for entry in entry_points(GROUP) if entry.module.split(".")[0] == parts[0]]
        yield from (getattr(plugin, name) for plugin in (entry.load() for entry in own) if hasattr(plugin, name))


def names_near(handler: Handler[Any, Any]) -> list[Any]:
    """What the names of a handler's module stand for."""
    return list(getattr(inspect.unwrap(functions.body_of(handler.function)), "__globals__", {}).values())
