"""Which queues the clients of a namespace may name: any, or those that the operator's globs allow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from taskyard.spelling import did_you_mean


@dataclass(frozen=True, slots=True)
class AllowedQueues:
    """``globs`` are the operator's (``quotas.queues``); ``named`` are the queues of installed handlers, which are allowed as well."""

    globs: tuple[str, ...]
    named: frozenset[str]

    @classmethod
    def of(cls, globs: Collection[str] | None, named: Iterable[str]) -> AllowedQueues | None:
        """The rule that the settings ask for; None where any queue may be named. ``default`` is always allowed."""
        return None if globs is None else cls(tuple(globs), frozenset({"default", *named}))

    def problem(self, queue: str) -> str | None:
        """What is wrong with the name of a queue; None if it is allowed."""
        if queue in self.named or any(fnmatchcase(queue, glob) for glob in self.globs):
            return None
        plain = {glob for glob in self.globs if not set(glob) & set("*?[")}
        return f"not a queue that this namespace may use.{did_you_mean(queue, self.named | plain)}"
