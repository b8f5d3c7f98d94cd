"""How a handler's function is to be called, and with which types: read from its signature when it is declared."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from taskyard.errors import InvalidHandler
from taskyard.functions import body_of, name_of

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Signature(NamedTuple):
    """The types of one task's payload and result, whether the function takes the context, and its resources: each parameter with its annotation."""

    payload: TypeAdapter[Any]
    result: TypeAdapter[Any]
    wants_context: bool
    resources: tuple[tuple[str, Any], ...]


def read_signature(type_: str, function: Callable[..., Any], context: type, *, many: bool) -> Signature:
    """Read the signature of a handler's function; with ``many`` it takes and returns lists. ``context`` is the class of contexts.

    Raises:
        InvalidHandler: it can't be called with a payload (a context, and resources), or an annotation is missing or of no use.
    """
    where = f"@handler({type_!r}) on {name_of(function)}"
    body = _checked(where, function)
    parameters = _parameters(where, function)
    try:
        hints = typing.get_type_hints(body, include_extras=True)
    except NameError as error:
        raise InvalidHandler(f"{where}: the annotation {error.name!r} can't be resolved; define it at module level") from error
    except Exception as error:  # an annotation in quotes may be anything
        raise InvalidHandler(f"{where}: its annotations can't be read: {type(error).__name__}: {error}") from error
    first = parameters[0].name
    if first not in hints:
        hint = "; for a method, declare the bound one: handler(...)(instance.method)" if first in ("self", "cls") else ""
        raise InvalidHandler(f"{where}: annotate the payload parameter {first!r} with its type{hint}")
    payload, result = hints[first], _awaited_by(hints.get("return", Any))
    if many:
        payload, result = _item_of(payload), _result_of(_item_of(result))
        if payload is None or result is None:
            wrong = f"the payload parameter {first!r}" if payload is None else "the return value"
            raise InvalidHandler(f"{where}: a batch handler takes and returns lists: annotate {wrong} as list[...]")
    wants_context = len(parameters) > 1 and parameters[1].kind in _POSITIONAL and _is_context(hints.get(parameters[1].name, Any), context)
    resources = tuple(_resource(where, parameter, hints, context) for parameter in parameters[2 if wants_context else 1 :])
    try:
        return Signature(TypeAdapter(payload), TypeAdapter(result), wants_context, resources)
    except Exception as error:
        raise InvalidHandler(f"{where}: Pydantic can't use its annotations: {error}") from error


def _checked(where: str, function: Any) -> Any:
    """The body of something that can be a handler."""
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"a {type(function).__name__}, which can't be called"
        raise InvalidHandler(f"{where}: that is {what}; expected a function, a bound method, or an object with __call__")
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise InvalidHandler(f"{where}: it is a generator, whose body would never run; return a value, without yield")
    return body


def _parameters(where: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that a run fills, in their order: the payload's, perhaps the context's, and those of resources."""
    try:
        # A wrapper's own parameters are what it is called with; one that passes on whatever it gets has those of what it wraps.
        own = inspect.signature(function, follow_wrapped=False).parameters.values()
        found = inspect.signature(function).parameters.values() if any(p.kind in _VARIADIC for p in own) else own
    except (TypeError, ValueError) as error:
        raise InvalidHandler(f"{where}: Python can't tell its parameters: {error}") from error
    named = [p for p in found if p.kind not in _VARIADIC]
    if not named or named[0].kind not in _POSITIONAL:
        hint = "; a decorator's wrapper needs functools.wraps" if any(p.kind in _VARIADIC for p in found) else ""
        raise InvalidHandler(f"{where}: expected (payload), (payload, ctx) or (payload, ctx, and resources), not 0 parameters by position{hint}")
    # What has a default is the function's own affair, unless it stands where the context does.
    return named[:1] + [p for p in named[1:] if p.default is p.empty or (p is named[1] and p.kind in _POSITIONAL)]


def _is_context(kind: Any, context: type) -> bool:
    """Is this the annotation of a context, of a list of them, or of anything?"""
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) in (list, Sequence) else kind
    return inner in (Any, list) or (typing.get_origin(inner) or inner) is context


def _resource(where: str, parameter: inspect.Parameter, hints: Mapping[str, Any], context: type) -> tuple[str, Any]:
    name, kind = parameter.name, hints.get(parameter.name, Any)
    if name not in hints:
        raise InvalidHandler(f"{where}: annotate {name!r} with the type of the resource that it gets from taskyard_lifespan")
    if _is_context(kind, context):
        raise InvalidHandler(f"{where}: the context is the second parameter; move {name!r} there")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise InvalidHandler(f"{where}: a resource is passed by name; put {name!r} behind the /")
    return name, kind


def _awaited_by(kind: Any) -> Any:
    """The annotation of what it is awaited for, if it says that it is to be awaited."""
    return typing.get_args(kind)[-1] if typing.get_origin(kind) in (Awaitable, Coroutine, asyncio.Future, asyncio.Task) else kind


def _item_of(kind: Any) -> Any:
    """The annotation of a list's items; None if it is no list's."""
    if kind in (Any, list):
        return Any
    if typing.get_origin(kind) not in (list, Sequence):
        return None
    [item] = typing.get_args(kind)
    # list[None] has None itself as its argument, which stands for "no list" here.
    return type(None) if item is None else item


def _result_of(kind: Any) -> Any:
    """The annotation of a result, without the exceptions that may stand in its place."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return type(None) if _is_error(kind) else kind
    # ``None`` as a type argument is NoneType here.
    return typing.Union[tuple(option for option in typing.get_args(kind) if not _is_error(option)) or (type(None),)]  # noqa: UP007  # made of a tuple


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
