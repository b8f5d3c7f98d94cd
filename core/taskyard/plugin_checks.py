"""What a plugin's hooks may return, and what a handler and a notifier must be: checked when the plugin is loaded, so that it fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from taskyard.errors import InvalidHandler
from taskyard.handlers import Handler
from taskyard.notifiers import Notifier
from taskyard.storable import storable_text
from taskyard.tracebacks import declared_at


def check_model(candidate: Any, module: object) -> type[BaseModel]:
    if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
        place = declared_at(getattr(module, "taskyard_config", None))
        raise InvalidHandler(f"taskyard_config returned {_shown(candidate)}; expected a Pydantic model, and not an instance of one", place)
    return candidate


def check_list(hook: str, candidate: Any, module: object) -> Iterable[Any]:
    if isinstance(candidate, str | Mapping) or not isinstance(candidate, Iterable):
        raise InvalidHandler(f"{hook} returned {_shown(candidate)}; expected a list", declared_at(getattr(module, hook, None)))
    return candidate


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {storable_text(repr(value), 200)}"


def check_handler(candidate: Any, plugin: str) -> Handler[Any, Any]:
    if not isinstance(candidate, Handler):
        raise InvalidHandler(f"taskyard_handlers returned {_shown(candidate)}; expected functions declared with @handler", declared_at(candidate))
    # Now, and not when somebody asks for them: one type without a schema would hide all others' then.
    _check_schema(f"handler {candidate.type!r}: payload", candidate.payload_schema)
    _check_schema(f"handler {candidate.type!r}: result", candidate.result_schema)
    return candidate.owned_by(plugin)


def check_options(notifier: Notifier) -> Notifier:
    _check_schema(f"notifier {notifier.name!r}: Options", notifier.Options.model_json_schema)
    return notifier


def _check_schema(what: str, build: Callable[[], dict[str, Any]]) -> None:
    try:
        build()
    except Exception as error:  # Pydantic raises many kinds, and a plugin's own types any
        raise InvalidHandler(f"{what}: no JSON Schema can be built: {storable_text(error)}") from error


def refuse_twins(what: str, brought: Iterable[tuple[str, Any]]) -> None:
    """Refuse names that one plugin brings more than once. Each comes with the function that is declared under it."""
    seen: set[str] = set()
    for name, function in brought:
        if name in seen:
            raise InvalidHandler(f"it brings the {what} {name!r} more than once", declared_at(function))
        seen.add(name)
