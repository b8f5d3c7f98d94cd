"""Is a plugin what the host, its users and its operators expect? The findings are sentences."""

from __future__ import annotations

import difflib
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import importlib_metadata
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel

from taskyard.errors import TaskyardError
from taskyard.handlers import Handler
from taskyard.notifiers import Notifier
from taskyard.plugins import GROUP, Plugin, Registry, load_plugins

#: A plugin's or a notifier's name: it is a key in taskyard.toml and a part of URLs.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_-]*")


def assert_plugin_conforms(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Fail with all problems of an installed plugin; see :func:`check_plugin`.

    Raises:
        AssertionError: names each problem.
    """
    problems = check_plugin(name, options)
    if problems:
        raise AssertionError("\n".join([f"The plugin {name!r} does not conform:", *(f"- {problem}" for problem in problems)]))


def check_plugin(name: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """The problems of an installed plugin, as sentences; an empty list is a plugin that conforms.

    ``options`` are its ``[plugins.<name>]`` section. Checked: it loads and is enabled, names are well formed, descriptions
    are there, settings are documented, JSON Schemas can be built and are valid, handlers are at module level.
    """
    installed = list(importlib_metadata.entry_points(group=GROUP))
    own = [entry for entry in installed if entry.name == name]
    if not own:
        near = difflib.get_close_matches(name, [entry.name for entry in installed], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Is its distribution installed, with an entry point in the group {GROUP!r}?"
        return [f"No plugin {name!r} is installed.{hint}"]
    try:
        registry = load_plugins(options={name: dict(options or {})}, entry_points=own)
    except TaskyardError as error:
        return [str(error)]
    return list(_problems(registry, registry.plugins[0]))


def _problems(registry: Registry, plugin: Plugin) -> Iterator[str]:
    if plugin.state != "enabled":
        yield f"It is {plugin.state}: {plugin.reason}"
        return
    if not NAME_PATTERN.fullmatch(plugin.name):
        yield f"The name {plugin.name!r} of its entry point is not lower-case letters, digits, - and _, starting with a letter."
    if not any(caller.get_hookimpls() for caller in vars(registry.hook).values() if hasattr(caller, "get_hookimpls")):
        yield "It implements no hook: mark functions such as taskyard_handlers with @taskyard.hookimpl."
    if plugin.config is not None:
        yield from _model_problems(f"[plugins.{plugin.name}]", type(plugin.config))
    for handler in plugin.handlers:
        yield from _handler_problems(handler)
    for notifier in plugin.notifiers:
        yield from _notifier_problems(notifier)


def _handler_problems(handler: Handler[Any, Any]) -> Iterator[str]:
    where = f"handler {handler.type!r}"
    if not handler.description:
        yield f"{where}: its function has no docstring; the first line is the description that clients see."
    yield from _schema_problems(f"{where}: payload", handler.payload_schema)
    yield from _schema_problems(f"{where}: result", handler.result_schema)
    if not _is_importable(handler):
        function = handler.function
        yield f"{where}: {function.__module__}.{function.__qualname__} can't be imported under that name; define it at module level."


def _is_importable(handler: Handler[Any, Any]) -> bool:
    """Whoever reads a traceback, or tests the plugin, finds the function by its module and name."""
    function = handler.function
    try:
        found = operator.attrgetter(function.__qualname__)(sys.modules[function.__module__])
    except (AttributeError, KeyError):
        return False
    return found is function or (isinstance(found, Handler) and found.function is function)


def _notifier_problems(notifier: Notifier) -> Iterator[str]:
    where = f"notifier {notifier.name!r}"
    if not NAME_PATTERN.fullmatch(notifier.name):
        yield f"{where}: a name is lower-case letters, digits, - and _, starting with a letter."
    if not (type(notifier).__doc__ or "").strip():
        yield f"{where}: its class has no docstring; the first line is the description that operators see."
    yield from _model_problems(f"{where}: Options", notifier.Options)


def _model_problems(where: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not field.description:
            yield f"{where}: {name!r} has no description; give it Field(description=...)."
    yield from _schema_problems(where, model.model_json_schema)


def _schema_problems(where: str, build: Callable[[], dict[str, Any]]) -> Iterator[str]:
    try:
        Draft202012Validator.check_schema(build())
    except SchemaError as error:
        yield f"{where}: its JSON Schema is not valid at {error.json_path}: {error.message}"
    except Exception as error:  # Pydantic raises many kinds, and a plugin's own hooks any
        yield f"{where}: no JSON Schema can be built: {error}"
