"""Lines in which a dispatch passed over a ready task because another transaction held its row.

Such a transaction (a wait that is noted, a change of tags) may end within a millisecond and leave the task ready, and nobody announces
that. So the line is looked at again after a moment, and then less and less often while the row stays locked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Seconds until a line is looked at again after the first time. Each further time doubles it.
SHORTEST = 0.002
#: Doublings after which the pause is the longest for any tick.
MOST = 20


@dataclass(slots=True)
class Skips:
    """When to look at which (queue, lane) again. ``longest`` is the longest pause in seconds."""

    longest: float
    _due: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def note(self, line: tuple[str, str], skipped: bool, now: float) -> None:
        """A dispatch has looked at a line; did it skip a ready task?"""
        if not skipped:
            self._due.pop(line, None)
            return
        times = self._due[line][1] if line in self._due else 0
        self._due[line] = now + min(SHORTEST * 2 ** min(times, MOST), self.longest), times + 1

    def clear(self) -> None:
        """All lines are about to be looked at."""
        self._due.clear()

    def next_at(self) -> float:
        """When the next line is due; never, if nothing was skipped."""
        return min((at for at, _ in self._due.values()), default=float("inf"))

    def due(self, now: float) -> list[tuple[str, str]]:
        """The lines whose time has come. Each is due until it is noted again."""
        return [line for line, (at, _) in self._due.items() if at <= now]
