"""What a plugin's function is: behind partials and callable objects. The one place that decides whether it is async."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any


def unwrapped(function: Any) -> Any:
    """The function behind ``functools.partial``, which only passes calls on."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def body_of(function: Any) -> Any:
    """What runs when it is called: the function or method itself, or the ``__call__`` of an object."""
    inner = unwrapped(function)
    return inner if inspect.isroutine(inner) else getattr(type(inner), "__call__", inner)  # noqa: B004  # the method itself is wanted


def name_of(function: Any) -> str:
    """What to call it in an error: its qualified name, or its class's."""
    inner = unwrapped(function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


def is_async(function: Any) -> bool:
    """Does calling it make a coroutine, as far as can be seen without a call?

    A plain function that returns a coroutine, such as a plain decorator's wrapper around an ``async def``, is not async here: nobody can
    know before the call. :func:`call` awaits what it returns.
    """
    return inspect.iscoroutinefunction(body_of(function))


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it where no event loop runs. What it has to be awaited for is awaited in an event loop of its own."""
    value = function(*arguments)
    return asyncio.run(_awaited(value)) if is_awaitable(value) else value


async def call_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that is not async from an event loop, which it must not block. What it has to be awaited for is awaited in the loop."""
    value = await asyncio.to_thread(function, *arguments)
    return await value if is_awaitable(value) else value


def is_awaitable(value: Any) -> bool:
    """Has it to be awaited? This is asked of every result, so the answer is remembered for each class."""
    return _is_awaitable_class(type(value))  # type: ignore[arg-type]  # a class can be hashed


@functools.lru_cache(maxsize=1000)
def _is_awaitable_class(kind: type) -> bool:
    return hasattr(kind, "__await__")


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
