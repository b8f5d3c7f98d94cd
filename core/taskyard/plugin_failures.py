"""Why, where and how a plugin has failed to load, from the exception; and which task types are missing by that, as far as its source tells."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import importlib_metadata

from taskyard import logs, tracebacks
from taskyard.errors import ConfigurationError, InvalidHandler
from taskyard.handlers import TYPE_PATTERN
from taskyard.storable import storable_text
from taskyard.timelimit import TimeIsUp

#: ``@handler("words.count"``, ``aliases=("words.total", ...)``, and the texts in it.
_HANDLER = re.compile(r"""\bhandler\(\s{0,200}(?:type\s{0,9}=\s{0,9})?["']([^"'\n]{1,200})["']""")
_ALIASES = re.compile(r"""\baliases\s{0,9}=\s{0,9}[(\[]?([^()\[\]]{1,2000})""")
_TEXT = re.compile(r"""["']([^"'\n]{1,200})["']""")
#: Files of a plugin that are looked through, and characters of each.
_MAX_FILES, _MAX_CHARACTERS = 200, 1_000_000


@dataclass(frozen=True, slots=True)
class Failure:
    """``reason`` is a sentence, or some lines of a configuration error. ``where`` and ``traceback`` are None where no code of the plugin took part."""

    reason: str
    where: str | None
    traceback: str | None
    types: tuple[str, ...]


def failure_of(entry: importlib_metadata.EntryPoint, error: BaseException, seconds: float) -> Failure:
    """What to tell of a plugin whose load raised, within the limit of ``seconds``. Secrets that the log hides are masked."""
    if isinstance(error, TimeIsUp):
        reason = f"It was not loaded within {seconds:g} s (plugins.import_timeout); it stood at {error.place}"
    else:
        reason = f"{type(error).__name__}: {storable_text(error)}".removesuffix(": ")
    place = tracebacks.place_of(error)
    where = (error.where if isinstance(error, InvalidHandler) else None) or place
    if where is None and not isinstance(error, ConfigurationError):
        where = _hook_named(entry.module, reason) or getattr(sys.modules.get(entry.module), "__file__", None) or f"the entry point {entry.name} = {entry.value}"
    return Failure(logs.clean(reason), where, tracebacks.readable(error) if place else None, tuple(sorted(declared_types(entry.module))))


def _hook_named(module: str, reason: str) -> str | None:
    """The place of the hook that a sentence of pluggy's is about."""
    loaded = sys.modules.get(module)
    named = (name for name in dir(loaded) if name.startswith("taskyard_") and name in reason)
    return next((place for name in named if (place := tracebacks.declared_at(getattr(loaded, name)))), None)


def declared_types(module: str) -> set[str]:
    """The task types, and their older names, that a plugin's source seems to declare. A source that Python can't read is read all the same."""
    found: set[str] = set()
    for path in islice(_sources(module.partition(".")[0]), _MAX_FILES):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")[:_MAX_CHARACTERS]
        except OSError:
            continue
        if "handler" in text:
            found |= {*_HANDLER.findall(text), *(name for listed in _ALIASES.findall(text) for name in _TEXT.findall(listed))}
    return {name for name in found if TYPE_PATTERN.fullmatch(name)}


def _sources(package: str) -> Iterator[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        yield from [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
        return
    for folder in spec.submodule_search_locations:
        yield from sorted(Path(folder).rglob("*.py"))
