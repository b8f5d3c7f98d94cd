"""How long tasks of each type take here lately: what the dispatcher packs messages by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskyard.dispatch.bundles import BUDGET
from taskyard.handlers import Handler

#: The weight of the latest run in the average.
LATEST = 0.1


class Pace:
    """The pace of each type, in seconds a task.

    Async tasks run side by side, so theirs is nothing; a batch handler's travel together, as many as it takes, however long a call lasts.
    A handler's ``bundle`` is a bound on how many travel together.
    """

    def __init__(self, handlers: Mapping[str, Handler[Any, Any]], on_new: Callable[[], None]) -> None:
        self._least = {type_: _least(handler) for type_, handler in handlers.items()}
        self._seconds = {type_: self._least[type_] for type_, handler in handlers.items() if handler.is_async or handler.batch}
        self._fixed = frozenset(self._seconds)
        self._on_new = on_new

    def add(self, type_: str, seconds: float) -> None:
        """A run of this type took so long."""
        if type_ in self._fixed:
            return
        before = self._seconds.get(type_)
        self._seconds[type_] = seconds if before is None else before + LATEST * (seconds - before)
        if before is None:
            self._on_new()

    def as_json(self) -> dict[str, float]:
        """For the worker's row."""
        return {type_: round(max(seconds, self._least[type_]), 6) for type_, seconds in self._seconds.items()}


def _least(handler: Handler[Any, Any]) -> float:
    # Half a task more, so that rounding never makes it one less.
    if handler.batch:
        return BUDGET / (handler.batch + 0.5)
    return BUDGET / handler.bundle if handler.bundle else 0.0
