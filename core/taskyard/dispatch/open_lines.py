"""Which lines are open: so short that a process which has just committed a task may send the task's hint itself.

A direct hint saves the wake-ups of PostgreSQL and of the dispatcher, and lets a task overtake those before it. So a dispatcher opens a line
while hardly anything waits in it, and closes it when a backlog builds up. Whoever hears of that late sends a few hints too many, or goes the
longer way a few times; neither changes an outcome.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

#: Seconds between two repetitions of which lines are open, for processes that have started since.
REPEAT_EVERY: Final = 5.0
#: Seconds for which the news that a line is open is good, unless it is repeated.
GOOD_FOR: Final = 3 * REPEAT_EVERY

Line = tuple[str, str]


@dataclass(slots=True)
class OpenLines:
    """What one dispatcher has told of each (queue, lane)."""

    _open: set[Line] = field(default_factory=set)
    _changed: dict[Line, bool] = field(default_factory=dict)
    _repeat_at: float = float("-inf")

    def set(self, line: Line, is_open: bool) -> None:
        """A line is open from now on, or closed."""
        if is_open != (line in self._open):
            (self._open.add if is_open else self._open.discard)(line)
            self._changed[line] = is_open

    def keep_only(self, lines: Iterable[Line]) -> None:
        """Close all others: nobody serves them, or their queues are paused."""
        for line in self._open.difference(lines):
            self.set(line, False)

    def news(self, now: float) -> list[str]:
        """What is to be told now, as payloads of the channel LINES: what has changed, and now and then all that is open."""
        told, self._changed = self._changed, {}
        if now >= self._repeat_at:
            self._repeat_at = now + REPEAT_EVERY
            told = dict.fromkeys(self._open, True) | told
        return [f"{'open' if is_open else 'closed'} {queue}/{lane}" for (queue, lane), is_open in sorted(told.items())]


def read(payload: str) -> tuple[Line, bool]:
    """The line that a payload of the channel LINES is about, and whether it is open.

    Raises:
        ValueError: it is none.
    """
    state, _, name = payload.partition(" ")
    queue, slash, lane = name.rpartition("/")
    if state not in ("open", "closed") or not slash:
        raise ValueError(f"expected 'open queue/lane' or 'closed queue/lane', not {payload!r}")
    return (queue, lane), state == "open"
