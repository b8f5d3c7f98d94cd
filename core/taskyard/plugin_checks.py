"""What a plugin's hooks may return, and what a handler and a notifier must be: checked when the plugin is loaded, so that it fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel

from taskyard.errors import InvalidHandler
from taskyard.handlers import Handler
from taskyard.notifiers import Notifier
from taskyard.schemas import UnusableSchema, check_text, schema_of
from taskyard.storable import storable_text
from taskyard.tracebacks import declared_at


def check_model(candidate: Any, module: object) -> type[BaseModel]:
    """What ``taskyard_config`` returned, as a model."""
    if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
        place = declared_at(getattr(module, "taskyard_config", None))
        raise InvalidHandler(f"taskyard_config returned {_shown(candidate)}; expected a Pydantic model, and not an instance of one", place)
    return candidate


def check_list(hook: str, candidate: Any, module: object) -> Iterable[Any]:
    """What a hook returned, as a list."""
    if isinstance(candidate, str | Mapping) or not isinstance(candidate, Iterable):
        raise InvalidHandler(f"{hook} returned {_shown(candidate)}; expected a list", declared_at(getattr(module, hook, None)))
    return candidate


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {storable_text(repr(value), 200)}"


def check_handler(candidate: Any, plugin: str) -> Handler[Any, Any]:
    """A handler of which clients can be told, marked as its plugin's."""
    if not isinstance(candidate, Handler):
        raise InvalidHandler(f"taskyard_handlers returned {_shown(candidate)}; expected functions declared with @handler", declared_at(candidate))
    # Now, and not when somebody asks for them: one type whose schema can't be shown would hide all others' then.
    owned, place = candidate.owned_by(plugin), declared_at(candidate.function)
    where = f"handler {candidate.type!r}"
    _check(f"{where}: payload", place, owned.payload_schema)
    _check(f"{where}: result", place, owned.result_schema)
    _check(f"{where}: docstring", place, partial(check_text, candidate.description))
    return owned


def check_options(notifier: Notifier) -> Notifier:
    """Refuse a notifier of which clients can't be told: its options, its name, its docstring."""
    where, place = f"notifier {notifier.name!r}", declared_at(notifier.send)
    _check(f"{where}: Options", place, partial(schema_of, notifier.Options))
    _check(where, place, partial(check_text, f"{notifier.name}{type(notifier).__doc__ or ''}"))
    return notifier


def _check(what: str, place: str | None, build: Callable[[], object]) -> None:
    try:
        build()
    except UnusableSchema as error:
        raise InvalidHandler(f"{what}: {error}", place) from error


def refuse_twins(what: str, brought: Iterable[tuple[str, Any]]) -> None:
    """Refuse names that one plugin brings more than once. Each comes with the function that is declared under it."""
    seen: set[str] = set()
    for name, function in brought:
        if name in seen:
            raise InvalidHandler(f"it brings the {what} {name!r} more than once", declared_at(function))
        seen.add(name)
