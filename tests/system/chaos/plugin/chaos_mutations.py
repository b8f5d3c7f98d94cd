"""One guard taken out of this process, to see that the suite finds it missing. Nothing of this is in the product.

Each mutation replaces text of the product's own statements and functions. Text that is not found means that the product has changed
and the mutation proves nothing any more: the process ends with :data:`NOT_FOUND`, and the harness says so.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sqlalchemy import text

from taskyard import lifecycle
from taskyard.dispatch import publisher

NOT_FOUND = 71


def _replaced(where: str, source: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        if old not in source:
            print(f"mutation: {where} has no {old!r} any more; the harness must learn what it says now", file=sys.stderr, flush=True)
            os._exit(NOT_FOUND)
        source = source.replace(old, new)
    return source


def _statement(name: str, replacements: dict[str, str]) -> None:
    found = getattr(lifecycle, name).text
    setattr(lifecycle, name, text(_replaced(f"lifecycle.{name}", found, replacements)))


def _function(module: ModuleType, owner: Any, name: str, replacements: dict[str, str]) -> None:
    """Make a function anew from its source, in its module."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    made: dict[str, Any] = {}
    exec(compile(_replaced(f"{module.__name__}.{name}", source, replacements), module.__file__ or "", "exec"), vars(module), made)
    setattr(owner, name, made[name])


def fence() -> None:
    """A finish no longer carries its fence: a worker that was given up as lost writes all the same."""
    _statement("_FINISH", {" AND t.fence = said.fence": "", " AND t.fence = d.fence": ""})


def sweep() -> None:
    """What was marked queued and never claimed is not sent again."""
    _statement("_DISPATCH", {"queued_at < now() - :stale * interval '1 second'": "queued_at < now() - (:stale + 1e9) * interval '1 second'"})


def hint_sweep() -> None:
    """Dispatchers leave pending tasks to direct hints, and those whose hint was lost where they are."""
    _statement("_DISPATCH", {"(status = 'pending' OR (status": "((status"})


def reap() -> None:
    """A silent worker is never given up."""
    _statement("_SILENT", {"beat_at < now()": "beat_at < now() - interval '1000 years'"})


def confirm() -> None:
    """Messages are published blindly: no confirm, and what no queue takes is not returned."""
    _function(publisher, publisher.Publisher, "_send", {"mandatory=True": "mandatory=False"})
    _function(publisher, publisher.Publisher, "_get_ready", {"if is_amqp(self._settings)": "if False"})


def terminal_guard() -> None:
    """A claim takes a task whatever its status. Its CHECK would still refuse, so the end is wiped as a careless claim would."""
    _statement(
        "_CLAIM",
        {
            "AND in_line AND status IN ('pending', 'queued') AND queue": "AND queue",
            " AND t.status IN ('pending', 'queued')": "",
            "progress = CASE": "finished_at = NULL, progress = CASE",
        },
    )


MUTATIONS: dict[str, Callable[[], None]] = {
    "fence": fence,
    "sweep": sweep,
    "hint-sweep": hint_sweep,
    "reap": reap,
    "confirm": confirm,
    "terminal-guard": terminal_guard,
}


def apply(name: str) -> None:
    """Take a guard out; no name leaves everything in."""
    if name:
        MUTATIONS[name]()
        print(f"mutation: this process works without {name}", file=sys.stderr, flush=True)
