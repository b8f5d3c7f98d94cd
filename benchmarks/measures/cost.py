"""What one task costs: statements, commits, WAL, messages, CPU; one at a time, and in a backlog; and what the roles cost, idle and at load."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.measures.sides import ROLES
from benchmarks.parts import counting
from benchmarks.processes import cpu, pss
from benchmarks.run import Run
from benchmarks.taskyard_side import TaskyardSide, taskyard
from taskyard import metrics


@dataclass(frozen=True)
class Counts:
    """Counters at one moment. ``statements`` is None where pg_stat_statements is not loaded."""

    at: float
    commits: float
    wal: float
    messages: float
    statements: float | None
    cpu: dict[str, float]

    @classmethod
    def now(cls, side: TaskyardSide) -> Counts:
        """The counters now."""
        with side.engine.connect() as connection:
            commits, wal = connection.execute(
                text("SELECT xact_commit, pg_current_wal_insert_lsn() - '0/0' FROM pg_stat_database WHERE datname = current_database()")
            ).one()
            messages = connection.execute(text("SELECT COALESCE(sum(value), 0) FROM counters WHERE name = :name"), {"name": metrics.MESSAGES.name}).scalar_one()
        return cls(time.monotonic(), float(commits), float(wal), float(messages), _statements(side), {role: cpu(side.group.family(role)) for role in ROLES})

    def since(self, before: Counts) -> dict[tuple[str, str], float]:
        """What was counted in between, by name and unit."""
        counted = {("commits", ""): self.commits - before.commits, ("WAL", "bytes"): self.wal - before.wal, ("messages", ""): self.messages - before.messages}
        if self.statements is not None and before.statements is not None:
            counted["statements", ""] = self.statements - before.statements
        return counted | {(f"CPU, {role}", "ms"): 1000 * (self.cpu[role] - before.cpu[role]) for role in ROLES}


def _statements(side: TaskyardSide) -> float | None:
    try:
        with side.engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
            found = connection.execute(
                text("SELECT sum(calls) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()")
            )
            return float(found.scalar() or 0)
    except DBAPIError:
        return None


def cost(run: Run) -> None:
    """Counters over single tasks on an idle system and over a backlog, less what the system does when idle."""
    for parts in run.parts:
        with (
            counting(parts, run.fresh("postgres")) as counted,
            taskyard(counted, run.fresh("taskyard"), *ROLES) as side,
        ):
            side.one("sync")
            side.work("sync", min(WARM, run.size.tasks))
            # What this has cost is told by now, and not in the window of an idle system.
            time.sleep(run.size.settle)
            run.say(f"cost: {side.name}, idle")
            idle = _window(run, side, 0, "idle")
            if ("statements", "") not in idle:
                run.leave_out(f"cost: {side.name}: no PostgreSQL with pg_stat_statements is installed here, so statements are not counted.")
            singles, backlog = run.size.samples * run.size.rounds, min(run.size.tasks, BACKLOG)
            for case, count in (("one at a time", singles), (f"a backlog of {backlog:,}", backlog)):
                run.say(f"cost: {side.name}, {case}")
                told = _window(run, side, count, case)
                for (name, unit), value in told.items():
                    if name != "seconds":
                        spent = value - idle[name, unit] / idle["seconds", ""] * told["seconds", ""]
                        run.figures.add("cost", case, side.name, f"{name} a task", unit, max(0.0, spent) / count)


#: Tasks in the backlog whose cost is counted, and those that warm up before.
BACKLOG, WARM = 20_000, 2000


def _window(run: Run, side: TaskyardSide, count: int, case: str) -> dict[tuple[str, str], float]:
    """Counts over some tasks and the time after them until PostgreSQL has told all; and what the roles cost meanwhile."""
    before = Counts.now(side)
    with Scales(side) as scales:
        if count > run.size.samples * run.size.rounds:
            side.work("sync", count)
        elif count:
            for _ in range(count):
                side.one("sync")
        else:
            time.sleep(run.size.idle)
    for role, (share, memory) in scales.read.items():
        run.figures.add("roles", case, f"{side.name}, {role}", "of one core", "%", share)
        run.figures.add("roles", case, f"{side.name}, {role}", "most memory (PSS)", "MiB", memory)
    time.sleep(run.size.settle)
    after = Counts.now(side)
    return {("seconds", ""): after.at - before.at, **after.since(before)}


class Scales:
    """Weighs each role twice a second while something goes on: its share of a core over all, and its most memory."""

    def __init__(self, side: TaskyardSide) -> None:
        self._side = side
        self._over = threading.Event()
        self._memory = dict.fromkeys(ROLES, 0)
        self._thread = threading.Thread(target=self._weigh)
        self.read: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Scales:
        self._began, self._before = time.monotonic(), self._cpu()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        took, after = time.monotonic() - self._began, self._cpu()
        self._over.set()
        self._thread.join()
        self.read = {role: (100 * (after[role] - self._before[role]) / took, self._memory[role] / 2**20) for role in ROLES}

    def _cpu(self) -> dict[str, float]:
        return {role: cpu(self._side.group.family(role)) for role in ROLES}

    def _weigh(self) -> None:
        while True:
            for role in ROLES:
                self._memory[role] = max(self._memory[role], pss(self._side.group.family(role)))
            if self._over.wait(0.5):
                return
