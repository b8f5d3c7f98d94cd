"""Are a plugin's handlers there in a process of their own, as in a worker? Run as ``python -m taskyard.testing.fresh NAME``, options on stdin."""

from __future__ import annotations

import importlib
import json
import operator
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import importlib_metadata

from taskyard.handlers import Handler
from taskyard.plugins import GROUP, load_plugins
from taskyard.pythons import python

#: Seconds that the process gets.
_TIMEOUT = 120.0


def missing_in_a_fresh_process(name: str, options: Mapping[str, Any], types: list[str]) -> list[str]:
    """What a new process lacks of a plugin that has these task types here, as sentences."""
    # It finds what this one finds: tests put folders on the path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)}
    command = python("-m", __name__, name)
    try:
        run = subprocess.run(  # noqa: S603  # our own module, and no shell
            command, input=json.dumps(dict(options), default=str), env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
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
    return [*absent, *told["problems"]]


def main() -> None:
    """Load the plugin and tell as JSON, on the last line, what is there."""
    (name,) = sys.argv[1:]
    entries = [entry for entry in importlib_metadata.entry_points(group=GROUP) if entry.name == name]
    (plugin,) = load_plugins(options={name: json.load(sys.stdin)}, entry_points=entries).plugins
    problems = [problem for handler in plugin.handlers if (problem := _not_importable(handler))]
    sys.stdout.write("\n" + json.dumps({"reason": plugin.reason, "types": [handler.type for handler in plugin.handlers], "problems": problems}))


def _not_importable(handler: Handler[Any, Any]) -> str | None:
    """Whoever reads a traceback, or tests the plugin, finds the function by its module and name."""
    function = handler.function
    try:
        found = operator.attrgetter(function.__qualname__)(importlib.import_module(function.__module__))
    except (AttributeError, ImportError):
        found = None
    if found is function or (isinstance(found, Handler) and found.function is function):
        return None
    return f"handler {handler.type!r}: {function.__module__}.{function.__qualname__} can't be imported under that name; define it at module level."


if __name__ == "__main__":
    main()
