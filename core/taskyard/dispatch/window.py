"""How much of a line the broker holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Window:
    """How much room one line has in the broker, as last measured and used up since. Counted in tasks."""

    size: int
    room: int = 0
    empty: bool = False
    drained: bool = False
    measured_at: float = field(default=float("-inf"))
    _sent: deque[int] = field(default_factory=deque)

    def measured(self, depth: int, now: float) -> None:
        """The broker's queue holds ``depth`` messages: the latest that were sent, for a queue gives out the oldest first.

        Messages beyond those that this dispatcher remembers are another's, and count like its own.
        """
        while len(self._sent) > depth:
            self._sent.popleft()
        known = sum(self._sent)
        others = depth - len(self._sent)
        waiting = known + others * (known / len(self._sent) if self._sent else 1)
        self.room, self.measured_at = self.size - round(waiting), now
        self.empty = self.drained = depth == 0

    def used(self, sizes: Iterable[int]) -> None:
        """Messages with so many tasks each are on their way."""
        for size in sizes:
            self._sent.append(size)
            self.room -= size
        self.empty = False

    def widen(self, size: int) -> None:
        """It may hold so many from now on."""
        self.room += size - self.size
        self.size = size

    @property
    def waiting(self) -> int:
        """Tasks of the line that wait in the broker, as far as is known."""
        return self.size - self.room

    @property
    def worth_filling(self) -> bool:
        """Is half of it free? Filled a task at a time, messages would carry one task each."""
        return self.room >= max(1, self.size // 2)
