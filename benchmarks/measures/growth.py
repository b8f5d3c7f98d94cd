"""What a long past, and a deep line, make of the statements: the verbs and lists, over databases of each size, which take turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import uuid_utils.compat as uuid7
from sqlalchemy import Connection, Engine, text

from benchmarks.history import fill, fill_line
from benchmarks.parts import engine_of, scratch_database
from benchmarks.run import Run
from taskyard import cursors, lifecycle, queries
from taskyard.queries import TaskFilters
from taskyard.records import Finished, NewTask

NAMESPACE, TYPES, LIMIT = "default", ["bench.sync"], 50
#: Bytes of disk that a task of the past takes, with its events, indexes and WAL.
BYTES = 1800
#: A statement that is slow at some size is tried no more than this often, once the tries of all sizes have taken so many seconds.
ENOUGH, PATIENCE = 3, 3.0
#: Lives that are lived while an old transaction is open, at once.
LIVES, AT_ONCE = 2000, 100


@dataclass
class Place:
    """A database under measurement."""

    name: str
    engine: Engine
    worker: UUID = field(default_factory=uuid7.uuid7)
    deep: str | None = None
    some: UUID | None = None

    def prepare(self) -> None:
        """Make a worker known, and find a deep cursor and a task of the middle."""
        with self.engine.begin() as connection:
            lifecycle.register_worker(connection, self.worker, "bench", ["default"], {"sync": 1})
            count = connection.execute(text("SELECT count(*) FROM tasks")).scalar_one()
            self.some = connection.execute(text("SELECT id FROM tasks ORDER BY id OFFSET :half LIMIT 1"), {"half": count // 2}).scalar_one()
            # The cursor of a page begins after an id: that of the middle is as deep as one gets by turning half of all pages.
            self.deep = cursors.encode(self.some.bytes, ["tasks", NAMESPACE, TaskFilters().identity()])


def growth(run: Run) -> None:
    """Each statement's time at each size; then while a transaction that is older than all of them is open, with vacuum on."""
    with ExitStack() as stack:
        places = [stack.enter_context(_place(run, f"10^{power} rows", 10**power)) for power in _powers(run)]
        least = min(4, run.size.rows)
        line = stack.enter_context(_place(run, f"10^{least} rows, and {run.size.waiting:,} that wait", 10**least, run.size.waiting))
        lives = min(LIVES, run.size.waiting)
        for number in range(run.size.rounds):
            run.say(f"growth, round {number + 1}")
            _time(run, [*places, line], _moves, lambda place: place.name)
            _time(run, [*places, line], _reads, lambda place: place.name)
        few = [places[0], places[-1], line]
        with ExitStack() as held:
            run.say("growth: an old transaction open")
            for place in few:
                old = held.enter_context(place.engine.connect().execution_options(isolation_level="REPEATABLE READ"))
                # A snapshot that sees, and keeps, everything that the lives below leave dead.
                old.execute(text("SELECT count(*) FROM workers"))
                _live(place, lives)
            _time(run, few, _moves, lambda place: f"{place.name}, old transaction open, {lives:,} lives lived")
        for place in few:
            _live(place, lives)
        _time(run, few, _moves, lambda place: f"{place.name}, after it")


def _powers(run: Run) -> list[int]:
    """10^4 up to the asked length, as far as the disk has room for all."""
    free = shutil.disk_usage(run.folder).free
    powers = [power for power in range(min(4, run.size.rows), run.size.rows + 1) if 10**power * BYTES * 2 < free]
    if (last := powers[-1]) < run.size.rows:
        run.leave_out(f"growth: 10^{last + 1} rows and more are left out: the disk has {free / 1e9:.0f} GB free.")
    return powers


@contextmanager
def _place(run: Run, name: str, count: int, waiting: int = 0) -> Iterator[Place]:
    from taskyard_migrations.runner import upgrade

    run.say(f"growth: filling {name}")
    with scratch_database(run.parts[0].postgres) as database:
        upgrade(database)
        engine = engine_of(database)
        try:
            fill(engine, count)
            if waiting:
                fill_line(engine, waiting)
            place = Place(f"Taskyard, {name}", engine)
            place.prepare()
            yield place
        finally:
            engine.dispose()


Statement = Callable[[Connection], object]


def _time(run: Run, places: Sequence[Place], what: Callable[[Place], Mapping[str, Statement]], side: Callable[[Place], str]) -> None:
    """Each statement in turn at each size, again and again: whatever else goes on meanwhile slows all sizes alike."""
    with ExitStack() as stack:
        works = [(place, stack.enter_context(place.engine.connect()), what(place)) for place in places]
        for case in works[0][2]:
            times: list[list[float]] = [[] for _ in works]
            began = time.monotonic()
            for tried in range(run.size.tries):
                if tried >= ENOUGH and time.monotonic() - began > PATIENCE:
                    break
                for taken, (_place, connection, statements) in zip(times, works, strict=True):
                    taken.append(_timed(connection, statements[case]))
            for (place, _, _), taken in zip(works, times, strict=True):
                run.figures.add_samples("growth", case, side(place), "one statement", "ms", taken)


def _timed(connection: Connection, work: Statement) -> float:
    began = time.perf_counter()
    work(connection)
    connection.commit()
    return (time.perf_counter() - began) * 1000


def _moves(place: Place) -> dict[str, Statement]:
    return {"submit": _submit, "dispatch and claim": partial(_claim, place)}


def _new() -> NewTask:
    return NewTask(uuid7.uuid7(), "bench.sync", {"number": 1}, "default", "sync", 5, 60.0, 3)


def _submit(connection: Connection) -> object:
    return lifecycle.submit(connection, [_new()])


def _claim(place: Place, connection: Connection, count: int = 1) -> object:
    """The head of the line to this worker. (It stays running: nobody reaps here.)"""
    hints = lifecycle.dispatch(connection, "default", "sync", count, 3600).hints
    return lifecycle.claim(connection, place.worker, "default", "sync", [hint.id for hint in hints], TYPES, 60.0)


def _live(place: Place, lives: int) -> None:
    """Tasks live their lives, many in a statement: rows and index entries die."""
    for _ in range(0, lives, AT_ONCE):
        with place.engine.begin() as connection:
            lifecycle.submit(connection, [_new() for _ in range(AT_ONCE)])
        with place.engine.begin() as connection:
            hints = lifecycle.dispatch(connection, "default", "sync", AT_ONCE, 3600).hints
            rows = lifecycle.claim(connection, place.worker, "default", "sync", [hint.id for hint in hints], TYPES, 60.0)
        with place.engine.begin() as connection:
            lifecycle.finish(connection, [Finished(row["id"], row["fence"], "succeeded", result="null") for row in rows], 3)


def _reads(place: Place) -> dict[str, Statement]:
    assert place.some is not None
    now, some = datetime.now(UTC), place.some
    filters = {
        "list: first page": TaskFilters(),
        "list: status=succeeded": TaskFilters(status=("succeeded",)),
        "list: status=failed": TaskFilters(status=("failed",)),
        "list: status=pending": TaskFilters(status=("pending",)),
        "list: status=held": TaskFilters(status=("held",)),
        "list: type, common": TaskFilters(type=("bench.sync",)),
        "list: type, 1 in 1,000": TaskFilters(type=("bench.rare",)),
        "list: queue": TaskFilters(queue=("mail",)),
        "list: tag, common": TaskFilters(tag=("customer:7",)),
        "list: tag, 1 in 1,000": TaskFilters(tag=("rare",)),
        "list: priority": TaskFilters(priority=9),
        "list: created_after": TaskFilters(created_after=now - timedelta(minutes=70)),
        "list: created_before": TaskFilters(created_before=now - timedelta(minutes=70)),
        "list: q, a type's start": TaskFilters(q="bench.a"),
        "list: q, an id's start": TaskFilters(q=str(some)[:13]),
    }
    reads: dict[str, Statement] = {name: partial(_list, filters=filter_) for name, filter_ in filters.items()}
    reads["list: deep cursor"] = partial(_list, filters=TaskFilters(), cursor=place.deep)
    reads["one task"] = lambda connection: queries.task(connection, NAMESPACE, some)
    reads["its events"] = lambda connection: queries.task_events(connection, NAMESPACE, some, LIMIT)
    return reads


def _list(connection: Connection, filters: TaskFilters, cursor: str | None = None) -> object:
    return queries.list_tasks(connection, NAMESPACE, filters, LIMIT, cursor)
