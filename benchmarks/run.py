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
    """How much is measured. The defaults take about half an hour."""

    rounds: int = 3
    #: Seconds of one load, and about as long of a peer's backlog.
    seconds: float = 4.0
    #: Tasks in a backlog.
    tasks: int = 50_000
    #: Single tasks of a round of latency.
    samples: int = 34
    #: Tasks that sleep at once.
    sleepers: int = 10_000
    #: Tasks of the mixed queue, of which one in a hundred takes ``slow`` seconds.
    mixed: int = 2000
    slow: float = 10.0
    #: The longest history is 10 to the power of this.
    rows: int = 6
    #: Tasks that wait while the line's growth is measured.
    waiting: int = 1_000_000
    #: Times that each statement of growth is tried in a round.
    tries: int = 30
    #: Seconds that idle processes are watched.
    idle: float = 11.0
    #: Seconds after which PostgreSQL's idle backends have told their counts (PGSTAT_IDLE_INTERVAL is 10 s).
    settle: float = 10.5

    def backlog(self, rate: float) -> int:
        """Tasks that keep a peer busy about as long as one load, by its rate (a second) in a small first round; no more than of ours."""
        return min(self.tasks, max(20, math.ceil(rate * self.seconds / 100) * 100))


QUICK = Size(rounds=2, seconds=1.0, tasks=4000, samples=15, sleepers=1000, mixed=400, slow=1.0, rows=5, waiting=20_000, tries=10, idle=5.0)


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
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _folders: int = 0

    def fresh(self, name: str) -> Path:
        """The path of a folder that is not there yet."""
        self._folders += 1
        return self.folder / f"{self._folders}-{name}"

    def leave_out(self, why: str) -> None:
        """Something could not be measured: the report says so, in this sentence."""
        self.left_out.append(why)
        self.say(why)

    def breaks(self, what: str) -> None:
        """A promise was broken under measurement: the report says so, in this sentence, and the command fails."""
        self.broken.append(what)
        self.leave_out(what)

    def note(self, what: str) -> None:
        """Something that the report says beside the figures."""
        self.notes.append(what)
