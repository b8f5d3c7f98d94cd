"""All sides at once, so that rounds can take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from benchmarks.peer_side import PEERS, peer
from benchmarks.processes import NotInTime
from benchmarks.run import Run
from benchmarks.taskyard_side import taskyard

ROLES = ("serve", "dispatcher", "worker")


class Side(Protocol):
    """Something that runs tasks."""

    name: str
    kinds: tuple[str, ...]

    def one(self, kind: str) -> float:
        """Seconds from accepted to started, for one task."""

    def work(self, kind: str, count: int) -> float:
        """Seconds for a backlog."""


@contextmanager
def all_sides(run: Run) -> Iterator[list[Side]]:
    """Taskyard on all parts, and the peers on the first. What doesn't start is left out, and the report says so."""
    with ExitStack() as stack:
        sides: list[Side] = []
        for parts in run.parts:
            run.say(f"starting Taskyard, {parts.name}")
            sides.append(stack.enter_context(taskyard(parts, run.fresh("taskyard"), *ROLES)))
        for known in PEERS if run.peers else ():
            run.say(f"starting {known.name}")
            try:
                sides.append(stack.enter_context(peer(known, run.parts[0], run.fresh(known.module))))
            except NotInTime as error:
                run.leave_out(str(error))
        yield sides
