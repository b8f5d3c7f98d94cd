"""How hints are put into messages: one a message while the line is short, many where tasks are quick.

A message costs a round trip for its confirmation and Celery's work on both sides, whatever it carries. So tasks that are done
in a millisecond travel together, as many as one process ends in about :data:`BUDGET` seconds. Nothing waits behind a slow task
for longer than that: a worker puts back in line what it has not started by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskyard.lifecycle import Hint

#: Seconds of work that one message brings to a process.
BUDGET = 0.1
#: Hints in one message at most.
MOST = 400
#: Messages that wait in the broker for each taker where tasks travel together, and how many times the window they may make of it.
AHEAD, WIDEST = 4, 8


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works on a line: ``takers`` processes (or event loops), and the seconds that a task of each known type takes.

    A type that nobody has measured yet, or whose handler asks for it (``bundle=1``), travels alone.
    """

    takers: int = 1
    pace: Mapping[str, float] = field(default_factory=dict)


def crew_of(workers: Iterable[Mapping[str, Any]], queue: str, lane: str) -> Crew:
    """The crew of a line, from the workers' rows: ``queues``, ``slots`` and ``pace``."""
    takers = 0
    pace: dict[str, float] = {}
    for worker in workers:
        if queue in worker["queues"]:
            takers += worker["slots"].get("sync", 1) if lane == "sync" else 1
            for type_, seconds in worker["pace"].items():
                pace[type_] = max(seconds, pace.get(type_, 0.0))
    return Crew(max(1, takers), pace)


def reach(hints: Sequence[Hint], crew: Crew, window: int) -> int:
    """How many tasks like these are to wait in the broker at most.

    A window of quick tasks is soon empty, and its messages would carry few: it is wider by as much as they may carry.
    """
    together = min(MOST, int(BUDGET * len(hints) / (sum(crew.pace.get(hint.type, BUDGET) for hint in hints) or 1e-9)))
    return window if together < 2 else max(window, min(AHEAD * crew.takers * together, WIDEST * window))


def pack(hints: Sequence[Hint], crew: Crew) -> list[list[Hint]]:
    """Hints as messages, in their order.

    Each taker is meant to get two messages, so that one waits while it works on the other.
    """
    most = min(MOST, -(-len(hints) // (2 * crew.takers)))
    bundles: list[list[Hint]] = []
    left = 0.0
    for hint in hints:
        seconds = crew.pace.get(hint.type, BUDGET)
        if not bundles or len(bundles[-1]) >= most or seconds > left:
            bundles.append([])
            left = BUDGET
        bundles[-1].append(hint)
        left -= seconds
    return bundles
