"""One set of logic for two clients: each call is written once, as a coroutine over a :class:`~taskyard.client.wires.Wire`.

A blocking wire never suspends: its coroutines block instead, so that one step runs such a coroutine to its end, without an event loop.
:class:`operation` and :class:`streaming` are the descriptors that look at whose call it is: read from something :class:`Blocking`, it is a
plain function; read from something :class:`Awaiting`, it is to be awaited. Type checkers see the same.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

A = ParamSpec("A")
T = TypeVar("T")


class Caller:
    """What has calls."""

    def _target(self) -> Any:
        """Whom the functions of the calls get as their first argument."""
        return self


class Blocking(Caller):
    """Whose calls block."""


class Awaiting(Caller):
    """Whose calls are awaited."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over a blocking wire returns. It never suspends, so the first step is its last."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking wire has suspended")


def iterate(stream: AsyncGenerator[T, None]) -> Iterator[T]:
    """What an asynchronous generator over a blocking wire yields."""
    try:
        while True:
            try:
                item = run(_next(stream))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(_close(stream))


async def _next(stream: AsyncGenerator[T, None]) -> T:
    return await anext(stream)


async def _close(stream: AsyncGenerator[Any, None]) -> None:
    await stream.aclose()


class operation(Generic[A, T]):
    """A call that answers once."""

    def __init__(self, function: Callable[Concatenate[Any, A], Coroutine[Any, Any, T]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    @overload
    def __get__(self, owner: None, kind: object = None) -> Self: ...
    @overload
    def __get__(self, owner: Blocking, kind: object = None) -> Callable[A, T]: ...
    @overload
    def __get__(self, owner: Awaiting, kind: object = None) -> Callable[A, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: Blocking | Awaiting | None, kind: object = None) -> Self | Callable[A, T] | Callable[A, Coroutine[Any, Any, T]]:
        if owner is None:
            return self
        if isinstance(owner, Awaiting):
            return partial(self.function, owner._target())

        def call(*args: A.args, **kwargs: A.kwargs) -> T:
            return run(self.function(owner._target(), *args, **kwargs))

        call.__doc__ = self.__doc__
        return call


class streaming(Generic[A, T]):
    """A call that answers with one thing after another."""

    def __init__(self, function: Callable[Concatenate[Any, A], AsyncGenerator[T, None]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    @overload
    def __get__(self, owner: None, kind: object = None) -> Self: ...
    @overload
    def __get__(self, owner: Blocking, kind: object = None) -> Callable[A, Iterator[T]]: ...
    @overload
    def __get__(self, owner: Awaiting, kind: object = None) -> Callable[A, AsyncGenerator[T, None]]: ...
    def __get__(self, owner: Blocking | Awaiting | None, kind: object = None) -> Self | Callable[A, Iterator[T]] | Callable[A, AsyncGenerator[T, None]]:
        if owner is None:
            return self
        if isinstance(owner, Awaiting):
            return partial(self.function, owner._target())

        def call(*args: A.args, **kwargs: A.kwargs) -> Iterator[T]:
            return iterate(self.function(owner._target(), *args, **kwargs))

        call.__doc__ = self.__doc__
        return call
