"""What can be a handler's function: whatever can be called with a payload, or a sentence says at once why not."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from taskyard import Context, InvalidHandler, handler
from taskyard.handlers import Handler
from taskyard.testing import run_handler


class Number(BaseModel):
    n: int


async def double(payload: Number, ctx: Context, factor: int = 2) -> int:
    """Multiply."""
    await asyncio.sleep(0)
    return payload.n * factor


def triple(payload: Number, *, factor: int = 3) -> int:
    """Multiply."""
    return payload.n * factor


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain decorator: round an async function, what it makes is a function that returns a coroutine."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def without_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that takes less than what it wraps."""

    @functools.wraps(function)
    def wrapper(payload: Number) -> Any:
        return function(payload, Context(task_id=None, type="x"))  # type: ignore[arg-type]  # nobody looks at it

    return wrapper


class Multiply:
    """Multiply."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, payload: Number) -> int:
        return payload.n * self.factor

    def method(self, payload: Number, ctx: Context) -> int:
        """Multiply."""
        return payload.n * self.factor

    async def coroutine(self, payload: Number) -> int:
        """Multiply."""
        return payload.n * self.factor

    @staticmethod
    async def static(payload: Number) -> int:
        """Multiply."""
        return payload.n * 9

    @classmethod
    def of_class(cls, payload: Number) -> int:
        """Multiply."""
        return payload.n * 10


class MultiplyLater:
    """Multiply."""

    async def __call__(self, payload: Number, ctx: Context) -> int:
        return payload.n * 8


class InHand:
    """Keeps what a class body's static method is before Python binds it."""

    raw = staticmethod(triple)


async def five_times(payload: Number, ctx: Context) -> int:
    """Multiply."""
    return payload.n * 5


def awaited(payload: Number) -> Awaitable[int]:
    """Return something to wait for, and no coroutine function's."""
    return five_times(payload, Context(task_id=None, type="x"))  # type: ignore[arg-type]  # nobody looks at it


# What was declared, whether it is async, and what 7 becomes.
FUNCTIONS: dict[str, tuple[Any, bool, int]] = {
    "partial of a coroutine": (functools.partial(five_times), True, 35),
    "partial that binds a keyword": (functools.partial(triple, factor=5), False, 35),
    "partial that binds the third": (functools.partial(double, factor=4), True, 28),
    "partial of a partial of an object": (functools.partial(functools.partial(MultiplyLater())), True, 56),
    "a plain decorator round a coroutine": (passing_on(five_times), False, 35),
    "a plain decorator round a plain one": (passing_on(triple), False, 21),
    "a decorator that takes less": (without_context(five_times), False, 35),
    "a function that returns an awaitable": (awaited, False, 35),
    "callable object": (Multiply(6), False, 42),
    "async callable object": (MultiplyLater(), True, 56),
    "bound method": (Multiply(7).method, False, 49),
    "bound coroutine method": (Multiply(7).coroutine, True, 49),
    "static method": (Multiply.static, True, 63),
    "static method, not bound": (InHand.__dict__["raw"], False, 21),
    "class method": (Multiply.of_class, False, 70),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_can_be_called_with_a_payload_is_a_handler(name: str) -> None:
    function, is_async, expected = FUNCTIONS[name]
    made: Handler[Any, Any] = handler("case.one")(function)
    assert (made.is_async, made.description.startswith(("Multiply", "Return"))) == (is_async, True)
    run = run_handler(made, {"n": 7})
    assert (run.status, run.result, run.error) == ("succeeded", expected, None)


def generates(payload: Number) -> Iterator[int]:
    yield payload.n


class Generates:
    def __call__(self, payload: Number) -> Iterator[int]:
        yield payload.n


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def wants_more(payload: Number, *, session) -> int:  # type: ignore[no-untyped-def]  # that is the point
    return payload.n


def in_quotes(payload: list[Number[3]]) -> int:  # type: ignore[type-arg, valid-type]  # that is the point
    return 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (generates, r"@handler\('case.one'\) on generates: it is a generator"),
        (functools.partial(generates), "on generates: it is a generator"),
        (Generates(), r"on Generates: it is a generator"),
        (Multiply, "on Multiply: that is a class; expected a function, a bound method, or an object with __call__"),
        (Multiply.method, "on Multiply.method: annotate the payload parameter 'self' with its type; for a method, declare the bound one"),
        (Multiply.coroutine, "annotate the payload parameter 'self' with its type; for a method, declare the bound one"),
        (Multiply.__dict__["of_class"], "classmethod, which can't be called"),
        (bare(triple), "not 0 parameters by position; a decorator's wrapper needs functools.wraps"),
        (wants_more, "annotate 'session' with the type of the resource"),
        (functools.partial(triple, Number(n=1)), "not 0 parameters"),
        (in_quotes, "its annotations can't be read: TypeError"),
        (3, "that is a int, which can't be called"),
        (handler("case.other")(triple), "that is the handler of 'case.other' already; a second name of a type stands in aliases"),
    ],
)
def test_what_cannot_be_a_handler_is_refused_where_it_is_declared(function: Any, told: str) -> None:
    with pytest.raises(InvalidHandler, match=told):
        handler("case.one")(function)
