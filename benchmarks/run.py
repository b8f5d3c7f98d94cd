"""One run: how large it is, what it measures on, and what every measure gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figures
from benchmarks.parts import Parts


@dataclass(frozen=True)
class Size:
    """How much is measured. The defaults take about five minutes."""

    rounds: int = 3
    #: Seconds of one load.
    seconds: float = 3.0
    #: Single tasks of a round of latency.
    samples: int = 34
    #: Tasks that sleep at once.
    sleepers: int = 1000
    #: Seconds that idle processes are watched.
    idle: float = 11.0

    def backlog(self, rate: float) -> int:
        """Tasks that keep a side busy about as long as one load, by its rate (a second) in a small first round."""
        return max(20, math.ceil(rate * self.seconds / 100) * 100)


QUICK = Size(rounds=2, seconds=1.0, samples=15, sleepers=300, idle=5.0)


@dataclass
class Run:
    """What every measure gets: parts, size, a folder for its processes, somewhere to tell its figures and how far it is."""

    size: Size
    parts: list[Parts]
    peers: bool
    folder: Path
    say: Callable[[str], None]
    figures: Figures = field(default_factory=Figures)
    left_out: list[str] = field(default_factory=list)
    _folders: int = 0

    def fresh(self, name: str) -> Path:
        """The path of a folder that is not there yet."""
        self._folders += 1
        return self.folder / f"{self._folders}-{name}"

    def leave_out(self, why: str) -> None:
        """Something could not be measured: the report says so, in this sentence."""
        self.left_out.append(why)
        self.say(why)
