"""One task's history against what handlers wrote of it: a pure judgement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

TERMINAL = frozenset({"task.succeeded", "task.failed", "task.cancelled", "task.expired"})


@dataclass(frozen=True, slots=True)
class Event:
    """A row of ``events``; ``time`` is in seconds since the epoch."""

    type: str
    time: float
    data: dict[str, Any]

    @property
    def begins_a_life(self) -> bool:
        """A person's retry of an ended task."""
        return self.type == "task.retrying" and self.data.get("manual") is True

    @property
    def ends_a_run(self) -> bool:
        """The run is over, the task is not."""
        if self.type == "task.released":
            return "reason" in self.data
        return self.type == "task.lost" or (self.type == "task.retrying" and not self.begins_a_life)


@dataclass(slots=True)
class Verdict:
    """What was found, over one task or many."""

    ends: int = 0
    lives: int = 0
    ended_twice: int = 0
    moved_after_end: int = 0
    started_after_end: int = 0
    repeated_runs: int = 0
    unexplained_runs: int = 0
    examples: list[str] = field(default_factory=list)


def judge(task: str, events: Iterable[Event], starts: Sequence[tuple[float, int]], verdict: Verdict) -> None:
    """Add one task to a verdict. ``starts`` are (time, fence) of each time that a handler began."""
    claimed, ends = _walk(task, events, verdict)
    fences = [fence for _, fence in starts]
    strange = [fence for fence in fences if fence not in claimed] + [fence for fence in set(fences) if fences.count(fence) > 1]
    if strange:
        verdict.unexplained_runs += len(strange)
        verdict.examples.append(f"task {task} ran with the fences {fences}; its history has {sorted(claimed)}")
    for at, fence in starts:
        if any(ended < at < again for ended, again in ends):
            verdict.started_after_end += 1
            verdict.examples.append(f"task {task} was started after its end, with fence {fence}")


def _walk(task: str, events: Iterable[Event], verdict: Verdict) -> tuple[set[int], list[tuple[float, float]]]:
    """Follow the events in their order; answers the fences that were claimed, and from when until when the task was ended."""
    claimed: set[int] = set()
    ends: list[tuple[float, float]] = []
    ended = running = False
    verdict.lives += 1
    for event in events:
        if event.begins_a_life:
            verdict.lives += 1
            ends[-1] = (ends[-1][0], event.time)
            ended = False
        elif event.type in TERMINAL:
            verdict.ends += 1
            verdict.ended_twice += ended
            ends.append((event.time, float("inf")))
            ended, running = True, False
        elif ended:
            verdict.moved_after_end += 1
            verdict.examples.append(f"task {task} has {event.type} after its end")
        elif event.type == "task.started":
            verdict.unexplained_runs += running
            claimed.add(event.data["fence"])
            running = True
        elif event.ends_a_run:
            verdict.repeated_runs += 1
            running = False
        if event.type == "task.started" and ended:
            claimed.add(event.data["fence"])
            verdict.started_after_end += 1
    return claimed, ends
