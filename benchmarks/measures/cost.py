"""What one task costs: statements, commits, WAL, messages, CPU; one at a time, and in a backlog."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kombu import Connection, Exchange, Queue
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.measures.sides import ROLES
from benchmarks.processes import cpu
from benchmarks.run import Run
from benchmarks.taskyard_side import TaskyardSide, taskyard

#: Seconds after which PostgreSQL's idle backends have told their counts (PGSTAT_IDLE_INTERVAL is 10 s).
SETTLE = 10.5


@dataclass(frozen=True)
class Counts:
    """Counters at one moment. ``statements`` is None where pg_stat_statements is not loaded."""

    at: float
    commits: float
    wal: float
    statements: float | None
    cpu: dict[str, float]

    @classmethod
    def now(cls, side: TaskyardSide) -> Counts:
        """The counters now."""
        with side.engine.connect() as connection:
            commits, wal = connection.execute(
                text("SELECT xact_commit, pg_current_wal_insert_lsn() - '0/0' FROM pg_stat_database WHERE datname = current_database()")
            ).one()
        return cls(time.monotonic(), float(commits), float(wal), _statements(side), {role: cpu(side.group.family(role)) for role in ROLES})

    def since(self, before: Counts) -> dict[tuple[str, str], float]:
        """What was counted in between, by name and unit."""
        counted = {("commits", ""): self.commits - before.commits, ("WAL", "bytes"): self.wal - before.wal}
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
        with taskyard(parts, run.fresh("taskyard"), *ROLES) as side, Tap(side) as tap:
            side.one("sync")
            side.work("sync", 50)
            run.say(f"cost: {side.name}, idle")
            idle = _window(side, 0)
            singles, backlog = run.size.samples * run.size.rounds, run.size.backlog(FULL)
            for case, count in (("one at a time", singles), (f"a backlog of {backlog}", backlog)):
                run.say(f"cost: {side.name}, {case}")
                tap.taken()
                told = _window(side, count)
                for (name, unit), value in told.items():
                    if name != "seconds":
                        spent = value - idle[name, unit] / idle["seconds", ""] * told["seconds", ""]
                        run.figures.add("cost", case, side.name, f"{name} a task", unit, max(0.0, spent) / count)
                run.figures.add("cost", case, side.name, "messages a task", "", tap.taken() / count)


#: Tasks a second by which the backlog is sized.
FULL = 300


def _window(side: TaskyardSide, count: int) -> dict[tuple[str, str], float]:
    """Counts over some tasks and the time after them until PostgreSQL has told all."""
    before = Counts.now(side)
    if count >= FULL:
        side.work("sync", count)
    else:
        for _ in range(count):
            side.one("sync")
    time.sleep(SETTLE)
    after = Counts.now(side)
    return {("seconds", ""): after.at - before.at, **after.since(before)}


class Tap:
    """A queue of our own beside Taskyard's, bound to the same exchange by the same key: it gets a copy of each message."""

    def __init__(self, side: TaskyardSide) -> None:
        self._connection = Connection(side.parts.broker)
        exchange = Exchange(side.prefix, type="direct", durable=True)
        self._queue = Queue(f"{side.prefix}.tap", exchange, routing_key=f"{side.prefix}.default.sync", durable=False, auto_delete=False, exclusive=True)

    def __enter__(self) -> Tap:
        self._bound = self._queue.bind(self._connection.default_channel)
        self._bound.declare()
        return self

    def __exit__(self, *_: object) -> None:
        self._bound.delete()
        self._connection.release()

    def taken(self) -> int:
        """Messages since the last call."""
        return int(self._bound.purge() or 0)
