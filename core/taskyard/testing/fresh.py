"""Are a plugin's handlers there in a process of their own, as in a worker, and are their names free?

Run as ``python -m taskyard.testing.fresh NAME``, the options and what else is to be loaded on stdin.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import operator
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import importlib_metadata

from taskyard.handlers import Handler
from taskyard.import_watch import DEAD_THREADS
from taskyard.plugins import GROUP, Plugin, conflicts, load_each, load_plugins
from taskyard.pythons import python
from taskyard.settings import PluginSettings

#: Seconds that the process gets.
_TIMEOUT = 120.0


def problems_in_a_fresh_process(name: str, options: Mapping[str, Any], types: list[str], among: PluginSettings) -> list[str]:
    """What a new process lacks of a plugin that has these task types here, and which of its names others have there, as sentences."""
    asked = {"options": dict(options), "only": among.only, "disabled": among.disabled, "others": among.options, "import_timeout": among.import_timeout}
    # It finds what this one finds: tests put folders on the path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)}
    command = python("-m", __name__, name)
    try:
        run = subprocess.run(  # noqa: S603  # our own module, and no shell
            command, input=json.dumps(asked, default=str), env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"It could not be loaded in a process of its own within {_TIMEOUT:g} s."]
    try:
        told: dict[str, Any] = json.loads(run.stdout.rpartition("\n")[2])
    except ValueError:
        return [f"A process of its own that loads it ended with status {run.returncode}: {run.stderr.strip()[-500:]}"]
    if told["reason"]:
        return [f"In a process of its own it is failed: {told['reason']}"]
    absent = [f"handler {each!r}: it is not there in a process of its own, as in a worker." for each in types if each not in told["types"]]
    return [*absent, *told["problems"], *told["taken"]]


def main() -> None:
    """Load the plugin and tell as JSON, on the last line, what is there."""
    (name,) = sys.argv[1:]
    asked = json.load(sys.stdin)
    # What is to be said of a plugin that has failed is in the answer, and that of another one is nobody's concern here.
    logging.disable()
    entries = list(importlib_metadata.entry_points(group=GROUP))
    (plugin,) = load_plugins(options={name: asked["options"]}, entry_points=[entry for entry in entries if entry.name == name]).plugins
    problems = [problem for handler in plugin.handlers if (problem := _not_importable(handler))]
    problems += [f"{thread}: {DEAD_THREADS}." for thread in plugin.threads]
    taken = [] if plugin.state == "failed" else _taken(plugin, [entry for entry in entries if entry.name != name], asked)
    told = {"reason": plugin.failure, "types": [handler.type for handler in plugin.handlers], "problems": problems, "taken": taken}
    sys.stdout.write("\n" + json.dumps(told))


def _taken(plugin: Plugin, others: list[importlib_metadata.EntryPoint], asked: Mapping[str, Any]) -> list[str]:
    """The names of a plugin that others claim, too. Each of those is loaded for itself, so that two others which are at odds are told elsewhere."""
    found: list[str] = []
    for entry in others:
        if entry.name not in asked["disabled"] and (asked["only"] is None or entry.name in asked["only"]):
            options = {entry.name: asked["others"].get(entry.name, {})}
            plugins, _ = load_each(options=options, import_timeout=asked["import_timeout"], entry_points=[entry])
            found += conflicts([plugin, *plugins])
    return found


def _not_importable(handler: Handler[Any, Any]) -> str | None:
    """Whoever reads a traceback, or tests the plugin, finds the function by its module and name. Methods, partials and objects have none of their own."""
    function = handler.function
    if not inspect.isfunction(function):
        return None
    try:
        found = operator.attrgetter(function.__qualname__)(importlib.import_module(function.__module__))
    except (AttributeError, ImportError):
        found = None
    if found is function or (isinstance(found, Handler) and found.function is function):
        return None
    return f"handler {handler.type!r}: {function.__module__}.{function.__qualname__} can't be imported under that name; define it at module level."


if __name__ == "__main__":
    main()
