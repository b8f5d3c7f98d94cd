"""Installed distributions' entry points, read so that one broken distribution costs nobody but itself.

An interrupted install or uninstall leaves a ``*.dist-info`` folder behind without its METADATA, or with files that are not text. Every
reader of entry points (also Celery's and Kombu's, at import) fails at the first such file, so unreadable distributions are hidden from all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import importlib_metadata

_hidden: dict[str, str] = {}


class _ReadableOnly(importlib_metadata.MetadataPathFinder):
    """Finds the distributions whose entry points can be read."""

    def find_distributions(self, context: Any = None) -> Iterator[Any]:  # type: ignore[override]  # it is declared as a class method
        found = super().find_distributions() if context is None else super().find_distributions(context)
        return (distribution for distribution in found if _problem(distribution) is None)


def hide_unreadable() -> list[str]:
    """Hide unreadable distributions from this process. Answers a sentence for each that was ever hidden."""
    for distribution in importlib_metadata.distributions():
        if problem := _problem(distribution):
            _hidden[str(getattr(distribution, "_path", "?"))] = problem
    if _hidden:
        sys.meta_path[:] = [_ReadableOnly() if type(finder) is importlib_metadata.MetadataPathFinder else finder for finder in sys.meta_path]
    return list(_hidden.values())


def entry_points(group: str) -> list[importlib_metadata.EntryPoint]:
    """The entry points of a group, those of whole distributions first."""
    return sorted(importlib_metadata.entry_points(group=group), key=lambda entry: broken(entry) is not None)


def broken(entry: importlib_metadata.EntryPoint) -> str | None:
    """What is wrong with the distribution that an entry point belongs to; None if nothing is."""
    if entry.dist is None:
        return None
    try:
        if entry.dist.name and entry.dist.version:
            return None
        problem = "it has no name or no version"
    except Exception as error:  # a missing file, bytes that are no text, a key that is not there
        problem = str(error) or type(error).__name__
    return f"Its distribution is broken ({_place(entry.dist)}: {problem}). Reinstall it, or remove that folder."


def first_by_name(found: Iterable[importlib_metadata.EntryPoint]) -> Iterator[importlib_metadata.EntryPoint]:
    """Entry points without the broken distributions' ones whose names others have, too."""
    seen: set[str] = set()
    for entry in found:
        if entry.name not in seen or broken(entry) is None:
            yield entry
        seen.add(entry.name)


def _problem(distribution: Any) -> str | None:
    try:
        list(distribution.entry_points)
    except Exception as error:  # bytes that are no text, a folder in a file's place, lines that are no entry points
        return f"{_place(distribution)}/entry_points.txt can't be read, so this distribution is ignored ({error}). Reinstall it, or remove that folder."
    return None


def _place(distribution: Any) -> str:
    return str(getattr(distribution, "_path", "an unknown folder"))
