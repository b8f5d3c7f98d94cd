"""Is a plugin what the host, its users and its operators expect? The findings are sentences."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import importlib_metadata
import uuid_utils.compat as uuid7
from pydantic import BaseModel

from taskyard.compatibility import required
from taskyard.errors import TaskyardError
from taskyard.handlers import Handler
from taskyard.notifiers import Notifier
from taskyard.plugins import GROUP, Plugin, Registry, load_plugins
from taskyard.schemas import UnusableSchema, schema_of
from taskyard.settings import PluginSettings
from taskyard.spelling import near_names
from taskyard.testing.fresh import problems_in_a_fresh_process
from taskyard.testing.fuzzing import first_odd_answer
from taskyard.testing.payloads import example_payloads, lost_on_the_way, wrong_examples
from taskyard.testing.runs import run_handler
from taskyard.timelimit import TimeIsUp, limited

#: A plugin's or a notifier's name: it is a key in taskyard.toml and a part of URLs.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is checked besides: payloads by Hypothesis, and handlers that are run twice."""

    fuzz: int = 0
    twice: bool = False


def assert_plugin_conforms(name: str, options: Mapping[str, Any] | None = None, *, fuzz: int = 0, twice: bool = False) -> None:
    """Fail with all problems of an installed plugin; see :func:`check_plugin`.

    Raises:
        AssertionError: names each problem.
    """
    problems = check_plugin(name, options, fuzz=fuzz, twice=twice)
    if problems:
        raise AssertionError("\n".join([f"The plugin {name!r} does not conform:", *(f"- {problem}" for problem in problems)]))


def check_plugin(name: str, options: Mapping[str, Any] | None = None, *, fuzz: int = 0, twice: bool = False, among: PluginSettings | None = None) -> list[str]:
    """The problems of an installed plugin, as sentences; an empty list is a plugin that conforms.

    ``options`` are its ``[plugins.<name>]`` section. Checked: it loads and is enabled, here and in a process of its own; it says
    which versions of Taskyard it works with; names are well formed, descriptions are there, settings are documented; JSON Schemas
    can be built and are valid, and so are the examples in them; a payload that is written and read again is the same; no other plugin that is
    installed brings its task types and notifiers. ``among`` are the settings by which the others are loaded: without, all are, unconfigured.

    ``fuzz`` odd payloads a handler must be accepted, or refused with a validation error (it needs the extra ``fuzz``). With
    ``twice`` each handler is *run* on an example, twice with the same ``(task_id, fence)``, and must give the same result.

    Raises:
        TaskyardError: ``fuzz`` is asked for, and Hypothesis is not installed.
    """
    installed = list(importlib_metadata.entry_points(group=GROUP))
    own = [entry for entry in installed if entry.name == name]
    if not own:
        near = near_names(name, [entry.name for entry in installed])
        hint = f" Did you mean {near[0]!r}?" if near else f" Is its distribution installed, with an entry point in the group {GROUP!r}?"
        return [f"No plugin {name!r} is installed.{hint}"]
    try:
        registry = load_plugins(options={name: dict(options or {})}, entry_points=own)
    except TaskyardError as error:
        return [str(error)]
    plugin = registry.plugins[0]
    if plugin.state != "enabled":
        return ["\n".join(filter(None, [f"It is {plugin.state}: {plugin.failure}", plugin.traceback]))]
    requires = own[0].dist.requires if own[0].dist else None
    problems = [*_requirement_problems(requires or []), *_problems(registry, plugin, _Asked(fuzz, twice))]
    return problems + problems_in_a_fresh_process(name, options or {}, [handler.type for handler in plugin.handlers], among or PluginSettings())


def _requirement_problems(requires: list[str]) -> Iterator[str]:
    wanted = required(requires)
    if not wanted:
        yield "Its distribution does not say which versions of Taskyard it works with: add 'taskyard>=0.1,<1' (or what is true) to its dependencies."


def _problems(registry: Registry, plugin: Plugin, asked: _Asked) -> Iterator[str]:
    if not NAME_PATTERN.fullmatch(plugin.name):
        yield f"The name {plugin.name!r} of its entry point is not lower-case letters, digits, - and _, starting with a letter."
    if plugin.name in PluginSettings.model_fields:
        yield f"It can't be named {plugin.name!r}: plugins.{plugin.name} is a setting of Taskyard's own."
    if not any(caller.get_hookimpls() for caller in vars(registry.hook).values() if hasattr(caller, "get_hookimpls")):
        yield "It implements no hook: mark functions such as taskyard_handlers with @taskyard.hookimpl."
    if plugin.config is not None:
        yield from _model_problems(f"[plugins.{plugin.name}]", type(plugin.config))
    for handler in plugin.handlers:
        yield from _handler_problems(handler)
        yield from _payload_problems(handler, plugin.config, asked)
    for notifier in plugin.notifiers:
        yield from _notifier_problems(notifier)


def _handler_problems(handler: Handler[Any, Any]) -> Iterator[str]:
    where = f"handler {handler.type!r}"
    if not handler.description:
        yield f"{where}: its function has no docstring; the first line is the description that clients see."
    yield from _schema_problems(f"{where}: payload", handler.payload_schema)
    yield from _schema_problems(f"{where}: result", handler.result_schema)


def _payload_problems(handler: Handler[Any, Any], config: Any, asked: _Asked) -> Iterator[str]:
    where = f"handler {handler.type!r}"
    schema = handler.payload_schema()
    try:
        wrong = list(wrong_examples(schema))
    except Exception:  # its schema is not valid, which is told already
        return
    yield from (f"{where}: payload: {problem}" for problem in wrong)
    if wrong:
        return
    examples = example_payloads(schema)
    yield from (f"{where}: {problem}" for example in examples if (problem := lost_on_the_way(handler.payload, example)))
    if asked.fuzz and (odd := first_odd_answer(handler.payload, schema, asked.fuzz)):
        yield f"{where}: {odd}"
    if asked.twice:
        yield from (f"{where}: {problem}" for problem in _twice(handler, config, examples))


def _twice(handler: Handler[Any, Any], config: Any, examples: list[Any]) -> Iterator[str]:
    """A run whose end was lost is done again; one that is asked for by the same (task_id, fence) should find what the first one did."""
    if not examples:
        yield "it can't be run twice, for its payload has no example: give its fields Field(examples=[...])"
        return
    task = uuid7.uuid7()
    try:
        with limited(2 * handler.timeout):
            first, second = (run_handler(handler, examples[0], config=config, task_id=task) for _ in range(2))
    except TimeIsUp as up:
        yield f"two runs on {json.dumps(examples[0])} took longer than {2 * handler.timeout:g} s; it stood at {up.place}"
        return
    for run in (first, second):
        if run.status != "succeeded":
            yield f"its run on {json.dumps(examples[0])} did not succeed: {run.code}: {run.error}"
            return
    if first.result != second.result:
        results = f"{json.dumps(first.result)}, then {json.dumps(second.result)}"
        yield f"two runs on {json.dumps(examples[0])} with the same (task_id, fence) differ: {results}"


def _notifier_problems(notifier: Notifier) -> Iterator[str]:
    where = f"notifier {notifier.name!r}"
    if not NAME_PATTERN.fullmatch(notifier.name):
        yield f"{where}: a name is lower-case letters, digits, - and _, starting with a letter."
    if not (type(notifier).__doc__ or "").strip():
        yield f"{where}: its class has no docstring; the first line is the description that operators see."
    for name in difflib.get_close_matches("operators_only", set(dir(notifier)) - {"operators_only"}, cutoff=0.85):
        yield f"{where}: Taskyard reads no attribute {name!r}. Did you mean 'operators_only'?"
    yield from _model_problems(f"{where}: Options", notifier.Options)


def _model_problems(where: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not field.description:
            yield f"{where}: {name!r} has no description; give it Field(description=...)."
    yield from _schema_problems(where, partial(schema_of, model))


def _schema_problems(where: str, build: Callable[[], object]) -> Iterator[str]:
    try:
        build()
    except UnusableSchema as error:
        yield f"{where}: {error}"
