"""Lifespans: the context managers by which a plugin makes what its handlers share in a process, and how they are matched to handlers.

A plugin implements ``taskyard_lifespan`` as a context manager, or as a plain function that returns a list of them. The annotation says what
a lifespan yields: those types are its resources. A handler gets a resource by annotating a parameter with the same type.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from taskyard.errors import InvalidHandler, LifespanFailed
from taskyard.handlers import Handler
from taskyard.masking import mask_url
from taskyard.storable import storable_text
from taskyard.tracebacks import declared_at

#: A resource is known by the annotation that provides it: a class, or ``Annotated[...]`` to tell two of one class apart.
Key = Any
Values = Mapping[Key, Any]

_SYNC = (Iterator, Generator, AbstractContextManager)
_ASYNC = (AsyncIterator, AsyncGenerator, AbstractAsyncContextManager)
_EXPECTED = "annotate what it yields, such as `-> AsyncIterator[httpx2.AsyncClient]`, `-> Iterator[tuple[Engine, Model]]` or `-> Iterator[None]`"


@dataclass(frozen=True, slots=True, eq=False)
class Lifespan:
    """One context manager of a plugin, and the types of what it yields. None for a lifespan that only does something."""

    plugin: str
    name: str
    manager: Callable[..., Any]
    provides: tuple[Key, ...]
    is_async: bool
    wants_config: bool
    #: Enters and exits a sync lifespan beside an event loop: always the same thread, so one that hangs is never started twice.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="lifespan"), repr=False)

    def open(self, config: Any) -> Any:
        """The context manager, sync or async as ``is_async`` says, not entered."""
        return self.manager(config) if self.wants_config else self.manager()

    def values(self, yielded: Any) -> dict[Key, Any]:
        """What it has yielded, by type.

        Raises:
            LifespanFailed: it is not as many resources as the annotation says.
        """
        if len(self.provides) == 1:
            return {self.provides[0]: yielded}
        if self.provides and (not isinstance(yielded, tuple) or len(yielded) != len(self.provides)):
            raise LifespanFailed(self.plugin, self.name, f"it yields {type(yielded).__name__}; its annotation says a tuple of {len(self.provides)}")
        return dict(zip(self.provides, yielded or (), strict=True))

    def failed(self, error: BaseException) -> LifespanFailed:
        """Why it did not start, as an error with a sentence that holds no password of a URL."""
        return error if isinstance(error, LifespanFailed) else LifespanFailed(self.plugin, self.name, _told(error))


def _told(error: BaseException) -> str:
    return mask_url(f"{type(error).__name__}: {storable_text(error, 1000)}")


# --- reading a plugin's hook ----------------------------------------------------------------------------------------------


def read_lifespans(plugin: str, hook: Callable[..., Any], config: Any) -> list[Lifespan]:
    """The lifespans of a plugin, from its implementation of ``taskyard_lifespan``.

    Raises:
        InvalidHandler: it is neither a context manager nor a function that returns a list of them, or says not what it yields.
    """
    if _is_manager(hook):
        return [_read(plugin, hook)]
    listed = hook(config) if _wants_config(hook) else hook()
    if not isinstance(listed, list | tuple) or not all(callable(each) for each in listed):
        told = f"taskyard_lifespan returned {storable_text(repr(listed), 200)}; expected a list of context managers' functions, or be one itself"
        raise InvalidHandler(told, declared_at(hook))
    return [_read(plugin, each) for each in listed]


def _is_manager(function: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner) or typing.get_origin(_returned(function)) in (*_SYNC, *_ASYNC)


def _returned(function: Callable[..., Any]) -> Any:
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner, include_extras=True).get("return")
    except NameError as error:
        where = getattr(inner, "__qualname__", repr(inner))
        raise InvalidHandler(f"{where}: the annotation {error.name!r} can't be resolved; import or define it at module level", declared_at(inner)) from error


def _read(plugin: str, function: Callable[..., Any]) -> Lifespan:
    name = getattr(inspect.unwrap(function), "__qualname__", repr(function))
    annotation = _returned(function)
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind not in (*_SYNC, *_ASYNC) or not arguments:
        raise InvalidHandler(f"the lifespan {name}: {_EXPECTED}", declared_at(function))
    manager: Callable[..., Any] = function
    if inspect.isasyncgenfunction(function):
        manager = asynccontextmanager(function)
    elif inspect.isgeneratorfunction(function):
        manager = contextmanager(function)
    return Lifespan(plugin, name, manager, _resources(name, function, arguments[0]), kind in _ASYNC, _wants_config(function))


def _resources(name: str, function: Callable[..., Any], yielded: Any) -> tuple[Key, ...]:
    keys = typing.get_args(yielded) if typing.get_origin(yielded) is tuple else (yielded,)
    if keys in ((None,), (type(None),)):
        return ()
    if any(key in (Any, object, Ellipsis, None, type(None)) for key in keys):
        raise InvalidHandler(f"the lifespan {name}: handlers ask for resources by type, so {_EXPECTED}", declared_at(function))
    return keys


def _wants_config(function: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        name = getattr(inspect.unwrap(function), "__qualname__", repr(function))
        raise InvalidHandler(f"the lifespan {name}: expected no parameter, or config, not {', '.join(required)}", declared_at(function))
    return bool(parameters)


# --- matching lifespans and handlers --------------------------------------------------------------------------------------


def check_resources(handlers: Iterable[Handler[Any, Any]], lifespans: Sequence[Lifespan]) -> None:
    """Refuse what could not work: a resource that nobody provides, or two do, or that is async while its handler is not.

    Raises:
        InvalidHandler: names the handler, its parameter and what there is.
    """
    providers: dict[Key, Lifespan] = {}
    for lifespan in lifespans:
        for key in lifespan.provides:
            if other := providers.get(key):
                twice = f"{other.name} provides it twice" if other is lifespan else f"both {other.name} and {lifespan.name} provide it"
                hint = f"Tell two of one type apart: Annotated[{shown(key)}, 'name'], also in the handlers"
                raise InvalidHandler(f"the resource {shown(key)}: {twice}. {hint}", declared_at(lifespan.manager))
            providers[key] = lifespan
    for handler in handlers:
        for parameter, key in handler.resources:
            _check_parameter(handler, parameter, key, providers)


def _check_parameter(handler: Handler[Any, Any], parameter: str, key: Key, providers: Mapping[Key, Lifespan]) -> None:
    where = f"handler {handler.type!r}: its parameter {parameter!r} asks for the resource {shown(key)}"
    if key not in providers:
        there = f"taskyard_lifespan provides {', '.join(map(shown, providers))}" if providers else "the plugin has no taskyard_lifespan that provides any"
        raise InvalidHandler(f"{where}, which nobody provides; {there}. (The run's own context is annotated taskyard.Context.)", declared_at(handler.function))
    if providers[key].is_async and not handler.is_async:
        name = providers[key].name
        told = f"{where}, but {name} is an async lifespan, and the handler is no `async def`: make it one, or the lifespan a sync one"
        raise InvalidHandler(told, declared_at(handler.function))


def shown(key: Key) -> str:
    """A resource's type as people write it."""
    return f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) and not typing.get_args(key) else str(key).removeprefix("typing.")


def needed(handler: Handler[Any, Any], lifespans: Iterable[Lifespan], replaced: Iterable[Key] = ()) -> list[Lifespan]:
    """The lifespans that must have started before this handler runs: those whose resources it gets, and those that only do something."""
    wanted = {key for _, key in handler.resources} - set(replaced)
    return [one for one in lifespans if (handler.is_async or not one.is_async) and (not one.provides or wanted & set(one.provides))]


def bound(handler: Handler[Any, Any], values: Values) -> Handler[Any, Any]:
    """The handler with its resources filled in: it is called with payload and context as any other."""
    if not handler.resources:
        return handler
    return replace(handler, function=partial(handler.function, **{name: values[key] for name, key in handler.resources}), resources=())


def bound_each_time(handler: Handler[Any, Any], lifespans: Sequence[Lifespan], config: Any, given: Values | None = None) -> Handler[Any, Any]:
    """An async handler whose lifespans are started by each call, and ended with it. ``given`` are resources that are there already."""

    async def call(*arguments: Any) -> Any:
        async with opened(lifespans, config) as values:
            return await bound(handler, {**values, **(given or {})}).function(*arguments)

    return replace(handler, function=call, resources=())


# --- running them ---------------------------------------------------------------------------------------------------------


@contextmanager
def opened_here(lifespans: Iterable[Lifespan], config: Any) -> Iterator[dict[Key, Any]]:
    """Start sync lifespans, and end them after the block.

    Raises:
        LifespanFailed: one did not start; those before it are ended.
    """
    values: dict[Key, Any] = {}
    with ExitStack() as stack:
        for one in lifespans:
            try:
                values |= one.values(stack.enter_context(one.open(config)))
            except Exception as error:
                raise one.failed(error) from error
        yield values


@asynccontextmanager
async def opened(lifespans: Iterable[Lifespan], config: Any) -> AsyncIterator[dict[Key, Any]]:
    """Start lifespans of both kinds in the running loop, and end them after the block.

    Raises:
        LifespanFailed: one did not start; those before it are ended.
    """
    values: dict[Key, Any] = {}
    async with AsyncExitStack() as stack:
        for one in lifespans:
            try:
                values |= one.values(await stack.enter_async_context(as_async(one, config)))
            except Exception as error:
                raise one.failed(error) from error
        yield values


def as_async(lifespan: Lifespan, config: Any) -> AbstractAsyncContextManager[Any]:
    """A lifespan as an async context manager. A sync one runs in its thread: it may load for long, and must not block the loop."""
    return lifespan.open(config) if lifespan.is_async else _in_thread(lifespan, config)


@asynccontextmanager
async def _in_thread(lifespan: Lifespan, config: Any) -> AsyncIterator[Any]:
    manager: AbstractContextManager[Any] = lifespan.open(config)
    entering = lifespan.thread.submit(manager.__enter__)
    try:
        value = await asyncio.wrap_future(entering)
    except asyncio.CancelledError:
        # A thread can't be ended. What it makes after all is ended as soon as it is there.
        entering.add_done_callback(partial(_leave, manager))
        raise
    try:
        yield value
    finally:
        await asyncio.wrap_future(lifespan.thread.submit(manager.__exit__, None, None, None))


def _leave(manager: AbstractContextManager[Any], entering: Future[Any]) -> None:
    if not entering.cancelled() and entering.exception() is None:
        manager.__exit__(None, None, None)
