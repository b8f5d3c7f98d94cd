"""A Hypothesis state machine that drives every verb of the lifecycle on PostgreSQL, and a model beside it.

After each step the whole database is looked at: what the model says of each task, what must hold of any task, whoever moved it,
and that what the model left alone has not changed by a single column. Time is made to move by rewriting timestamps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import psycopg
import uuid_utils.compat as uuid7
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from psycopg.rows import dict_row
from sqlalchemy import Connection, Engine, text

from taskyard import backlog, lifecycle
from taskyard.errors import IllegalTransition, NotFound, UniqueConflict
from taskyard.events import EVENT_TYPES
from taskyard.records import Finished, NewTask
from taskyard.routes import sync_routes
from taskyard.settings import Route

from .invariants import check_history, check_row
from .model import KNOWN_TYPES, MAX_LOST, MOVES, Model, Refused, Taken, Task, When

QUEUES = ("default", "io")
TIMES = {"ahead": "2999-01-01T00:00:00+00:00", "past": "2001-01-01T00:00:00+00:00", None: None}
STALE = SILENCE = 1000.0
ROUTES = [
    Route(name="demo", notifier="log", events=EVENT_TYPES, types=("demo.*",)),
    Route(name="urgent ends", notifier="log", events=("task.succeeded", "task.failed", "task.cancelled", "task.expired"), min_priority=5),
    Route(name="tagged", notifier="log", events=("task.updated", "task.lost", "task.retrying", "task.released"), tags=("t",)),
]
LOOK = """
SELECT t.*, (
  SELECT jsonb_agg(jsonb_build_array(e.type, e.attempt, e.data,
    (SELECT COALESCE(jsonb_agg(d.route ORDER BY d.route), '[]') FROM deliveries d WHERE d.event_id = e.id AND d.task_id = t.id)) ORDER BY e.id)
  FROM events e WHERE e.task_id = t.id AND e.namespace = t.namespace) AS history
FROM tasks t"""
CLEAR = text("WITH a AS (DELETE FROM tasks), b AS (DELETE FROM workers), c AS (DELETE FROM queues) DELETE FROM events")

#: Which task: up to 5 any, above that one that the verb is meant for, if there is one.
which = st.integers(0, 23)
some = st.lists(which, min_size=1, max_size=3)
queue = st.sampled_from(QUEUES[:1] * 3 + QUEUES[1:])
when: st.SearchStrategy[When] = st.sampled_from([None, None, None, None, "ahead", "past"])
moment: st.SearchStrategy[When] = st.sampled_from([None, "ahead", "past"])
births: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    type=st.sampled_from([*KNOWN_TYPES * 3, "other.kind"]),
    queue=queue,
    priority=st.sampled_from([0, 5, 5, 9]),
    max_attempts=st.integers(1, 3),
    tags=st.sampled_from([(), ("t",)]),
    unique_key=st.sampled_from([None, None, None, "a"]),
    run_at=when,
    expires=when,
)
changes = st.dictionaries(st.sampled_from(["priority", "run_at", "expires_at", "tags", "metadata"]), st.none(), min_size=1, max_size=2).flatmap(
    lambda keys: st.fixed_dictionaries({key: CHANGES[key] for key in keys})
)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "priority": st.sampled_from([0, 5, 9]),
    "run_at": moment,
    "expires_at": moment,
    "tags": st.sampled_from([[], ["t"]]),
    "metadata": st.just({"said": "so"}),
}
outcomes = st.sampled_from(["succeeded", "failed", "retry", "retry later", "cancelled", "lost", "lost", "returned"])
#: How far the fence of a report is off: most are right.
off = st.sampled_from([0, 0, 0, 0, -1, 1])


class Machine(RuleBasedStateMachine):
    """One sequence. What is the same for all is set by :func:`on` on a subclass."""

    connection: Connection
    alone: Connection
    eye: psycopg.Connection[dict[str, Any]]
    moved: set[tuple[str, str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.before: dict[UUID, dict[str, Any]] = {}

    def teardown(self) -> None:
        self._one(lambda connection: connection.execute(CLEAR))
        self.moved |= self.model.moved

    def _do(self, work: Callable[[Connection], Any]) -> Any:
        """In a transaction."""
        with self.connection.begin():
            return work(self.connection)

    def _one(self, work: Callable[[Connection], Any]) -> Any:
        """One statement, which needs no other transaction than its own: a third of the round trips."""
        return work(self.alone)

    def _task(self, number: int, *meant: str) -> Task:
        tasks = list(self.model.tasks.values())
        fit = [task for task in tasks if task.status in meant] if number > 5 else []
        return (fit or tasks)[number % len(fit or tasks)]

    def _ids(self, numbers: Sequence[int], *meant: str) -> list[UUID]:
        return [self._task(number, *meant).id for number in numbers]

    def _worker(self, number: int) -> UUID:
        workers = list(self.model.workers) or [uuid7.uuid7()]
        return workers[number % len(workers)]

    # --- clients ---

    @initialize(born=st.lists(births, min_size=2, max_size=4), started=st.sampled_from([True, True, False]))
    def begin(self, born: list[dict[str, Any]], started: bool) -> None:
        self.submit(born)
        if started:
            self.dispatch_and_claim(0, QUEUES[0])

    @precondition(lambda self: len(self.model.tasks) < 6)
    @rule(born=st.lists(births, min_size=1, max_size=2))
    def submit(self, born: list[dict[str, Any]]) -> None:
        new = [Task(uuid7.uuid7(), **fields) for fields in born]
        rows = self._one(lambda c: lifecycle.submit(c, [new_task(task) for task in new]))
        assert set(rows) == self.model.submit(new)
        assert self._one(lambda c: lifecycle.submit(c, [new_task(task) for task in new if task.id in rows])) == {}, "once is enough"

    # --- time, and who is alive ---

    @rule(n=which, column=st.sampled_from(["next_run_at", "next_run_at", "run_at", "expires_at", "queued_at", "queued_at"]), seen=st.booleans())
    def time_passes(self, n: int, column: str, seen: bool) -> None:
        """The moment that a column names comes, and a dispatcher may see it. Of an expiry, whether or not there was to be one."""
        name, then = {"next_run_at": ("next_run", "past"), "expires_at": ("expires", "past"), "queued_at": ("queued", "stale")}.get(column, (column, "past"))
        fit = [task for task in self.model.tasks.values() if getattr(task, name) in ("ahead", "fresh") or name == "expires"]
        if not fit:
            return
        self._let_pass(task := fit[n % len(fit)], column, name, then)
        if seen:
            self.look()
            chores: dict[str, Callable[[], None]] = {"expires": self.expire, "queued": lambda: self.dispatch(task.queue, 4)}
            chores.get(name, self.promote)()

    def _let_pass(self, task: Task, column: str, name: str, then: str) -> None:
        setattr(task, name, then)
        self._one(lambda c: c.execute(text(f"UPDATE tasks SET {column} = '2001-01-01' WHERE id = :id"), {"id": task.id}))
        self.before.pop(task.id, None)

    @rule(n=which, what=st.sampled_from(["register", "fall silent", "fall silent", "beat", "unregister", "pause", "resume", "resume"]))
    def the_world_turns(self, n: int, what: str) -> None:
        worker, workers = self._worker(n), self.model.workers
        if what == "register" and len(workers) < 2:
            self.register()
        elif what == "fall silent":
            self._one(lambda c: c.execute(text("UPDATE workers SET beat_at = '2001-01-01' WHERE id = :id"), {"id": worker}))
            workers.update({worker: False} if worker in workers else {})
            if n % 2:
                self.reap()
        elif what == "beat":
            assert self._one(lambda c: lifecycle.beat(c, worker)) is (worker in workers)
            workers.update({worker: True} if worker in workers else {})
        elif what == "unregister":
            self._one(lambda c: lifecycle.unregister_worker(c, worker))
            self.model.unregister(worker)
        else:
            self.pause(QUEUES[n % 2], what == "pause")

    def pause(self, queue: str, pause: bool) -> None:
        self._one(lambda c: (backlog.pause if pause else backlog.resume)(c, queue, QUEUES, SILENCE))
        (self.model.paused.add if pause else self.model.paused.discard)(queue)

    def _register_if_none(self) -> None:
        if not self.model.workers:
            self.register()

    def register(self) -> None:
        worker = uuid7.uuid7()
        self._one(lambda c: lifecycle.register_worker(c, worker, "w", QUEUES, {}))
        self.model.workers[worker] = True

    # --- dispatcher ---

    @rule(chores=st.lists(st.sampled_from(["promote", "expire", "reap"]), min_size=1, max_size=3, unique=True))
    def housekeep(self, chores: list[str]) -> None:
        for chore in chores:
            getattr(self, chore)()
            self.look()

    def promote(self) -> None:
        assert len(self._one(lifecycle.promote)) == self.model.promote()

    @rule(queue=queue, room=st.integers(1, 4))
    def dispatch(self, queue: str, room: int) -> None:
        hints = self._one(lambda c: lifecycle.dispatch(c, queue, "sync", room, STALE).hints)
        assert [hint.id for hint in hints] == self.model.dispatch(queue, room)
        assert self._one(lambda c: lifecycle.dispatch(c, queue, "async", room, STALE).hints) == []

    def withdraw(self, ns: list[int]) -> None:
        ids = set(self._ids(ns, "queued"))
        assert self._one(lambda c: lifecycle.withdraw(c, ids)) == self.model.withdraw(ids)

    def expire(self) -> None:
        assert {row["id"] for row in self._one(lifecycle.expire)} == self.model.expire()

    def reap(self) -> None:
        rows = self._do(lambda c: lifecycle.reap(c, SILENCE, MAX_LOST))
        assert {row["id"] for row in rows} == self.model.reap()
        assert {row["id"]: row["status"] for row in rows} == {row["id"]: self.model.tasks[row["id"]].status for row in rows}

    # --- worker ---

    @rule(n=which, queue=queue, ns=some, forged=st.booleans())
    def claim(self, n: int, queue: str, ns: list[int], forged: bool) -> None:
        """Messages may be doubled, late, of another line, or of no task at all."""
        worker, ids = self._worker(n), self._ids(ns, "queued") + [uuid7.uuid7()] * forged
        rows = self._one(lambda c: lifecycle.claim(c, worker, queue, "sync", ids, KNOWN_TYPES, 1000.0))
        assert {row["id"]: row["status"] for row in rows} == self.model.claim(worker, queue, ids)

    @rule(n=which, queue=queue, ends=st.lists(outcomes, max_size=3), dies=st.sampled_from([False, False, True]))
    def work(self, n: int, queue: str, ends: list[str], dies: bool) -> None:
        """What mostly happens: what is ready runs, and ends somehow; and so again, as long as it comes back. Or its worker dies."""
        self.dispatch_and_claim(n, queue)
        for outcome in ends:
            self.look()
            self._finish([report(task, 0, outcome) for task in self.model.tasks.values() if task.status == "running" and task.queue == queue])
            self.look()
            self.dispatch_and_claim(n, queue)
        if dies:
            self.look()
            self.the_world_turns(n | 1, "fall silent")

    def dispatch_and_claim(self, n: int, queue: str) -> None:
        self._register_if_none()
        self.dispatch(queue, 4)
        self.look()
        queued = [number for number, task in enumerate(self.model.tasks.values()) if task.queue == queue and task.status == "queued"]
        self.claim(n, queue, queued or [0], False)

    @rule(n=which, queue=queue, what=st.sampled_from(["more urgent", "pause", "expired", "ended", "later", "cancel", "hold"]))
    def while_a_hint_travels(self, n: int, queue: str, what: str) -> None:
        """Something happens between dispatch and claim."""
        self._register_if_none()
        self.dispatch(queue, 4)
        queued = [number for number, task in enumerate(self.model.tasks.values()) if task.queue == queue and task.status == "queued"][:2] or [0]
        task = self._task(queued[0])
        if what == "more urgent" and len(self.model.tasks) < 7:
            self.submit([{"queue": queue, "priority": 9}])
        elif what == "pause":
            self.pause(queue, True)
        elif what in ("expired", "ended"):
            self._let_pass(task, "expires_at", "expires", "past")
            if what == "ended":
                self.expire()
        elif what == "later":
            self.update(queued[0], {"run_at": "ahead"})
        elif what in ("cancel", "hold"):
            self._ask(what, task, False, lambda: getattr(self.model, what)(task.id))
        self.look()
        self.claim(n, queue, queued, False)

    @rule(reports=st.lists(st.tuples(which, off, outcomes), min_size=1, max_size=4))
    def finish(self, reports: list[tuple[int, int, str]]) -> None:
        said = [report(self._task(n, "running"), slip, outcome) for n, slip, outcome in reports]
        self._finish(list({one.id: one for one in said}.values()))

    def _finish(self, said: list[Finished]) -> None:
        rows = self._one(lambda c: lifecycle.finish(c, said, MAX_LOST))
        expected = {one.id: self.model.finish(one.id, one.fence, one.outcome, one.delay) for one in said}
        assert {row["id"]: row["status"] for row in rows} == {id_: status for id_, status in expected.items() if status}

    @rule(n=which, ns=some, off=off, what=st.sampled_from(["progress", "withdraw", "hand back"]))
    def or_else(self, n: int, ns: list[int], off: int, what: str) -> None:
        if what == "progress":
            self.progress(n, off, ns[0] / 24)
        elif what == "withdraw":
            self.withdraw(ns)
        else:
            self.hand_back(n, ns)

    def progress(self, n: int, off: int, fraction: float) -> None:
        task = self._task(n, "running")
        key = (task.id, max(0, task.fence + off))
        written = self._one(lambda c: lifecycle.progress(c, {key: {"fraction": fraction}}))
        assert (written == [task.id]) is self.model.tell(*key, fraction)

    def hand_back(self, n: int, ns: list[int]) -> None:
        """After an outage: what Postgres says this worker runs, and it does not know of."""
        worker = self._worker(n)
        # Each third of them it knows by a fence of before.
        known = {id_: self.model.tasks[id_].fence - (place % 3 == 2) for place, id_ in enumerate(self._ids(ns)) if id_ in self.model.tasks}
        strays = self._one(lambda c: lifecycle.strays(c, worker, known))
        assert {stray.id: stray.fence for stray in strays} == self.model.strays(worker, known)
        self._finish(strays)

    # --- people ---

    @rule(asked=st.lists(st.tuples(which, st.sampled_from(["cancel", "hold", "release", "retry", "retry"]), st.integers(0, 7)), min_size=1, max_size=3))
    def people(self, asked: list[tuple[int, str, int]]) -> None:
        for n, verb, who in asked:
            self.person(n, verb, who == 1)
            self.look()

    def person(self, n: int, verb: str, stranger: bool) -> None:
        task = self._task(n, *(before for before, _ in MOVES[verb]))
        self._ask(verb, task, stranger, lambda: getattr(self.model, verb)(task.id))

    @rule(n=which, changes=changes)
    def update(self, n: int, changes: dict[str, Any]) -> None:
        task = self._task(n)
        told = {key: TIMES[cast(When, value)] if key.endswith("_at") else value for key, value in changes.items()}
        self._ask("update", task, False, lambda: self.model.update(task.id, changes), told)

    def _ask(self, verb: str, task: Task, stranger: bool, expected: Callable[[], None], *arguments: Any) -> None:
        """The statement and the model agree: done, or refused for the same reason."""
        answer: Any = None
        try:
            answer = (self._do if verb == "retry" else self._one)(
                lambda c: getattr(lifecycle, verb)(c, "foreign" if stranger else "default", task.id, *arguments)
            )
        except (IllegalTransition, NotFound, UniqueConflict) as error:
            answer = error
        if stranger:
            assert isinstance(answer, NotFound)
            return
        refusal: Refused | Taken | None = None
        try:
            expected()
        except (Refused, Taken) as error:
            refusal = error
        if isinstance(refusal, Refused):
            assert isinstance(answer, IllegalTransition)
            assert (answer.verb, answer.status, set(answer.allowed)) == (verb, refusal.status, refusal.allowed)
        elif isinstance(refusal, Taken):
            assert isinstance(answer, UniqueConflict)
            assert (answer.unique_key, answer.task_id) == (task.unique_key, str(refusal.holder))
        else:
            assert answer["status"] == task.status

    # --- after each step ---

    @invariant()
    def look(self) -> None:
        rows = {row["id"]: row for row in self.eye.execute(LOOK)}
        assert rows.keys() == self.model.tasks.keys()
        for id_, row in rows.items():
            task, before = self.model.tasks[id_], self.before.get(id_)
            if before is not None and before["version"] == task.version:
                assert row == before, "this step was not this task's"
                continue
            check_row(row, task)
            check_history(row)
            assert before is None or row["fence"] >= before["fence"]
        self.before = rows


@contextmanager
def on(engine: Engine) -> Iterator[type[Machine]]:
    """The machine for a database: two connections act, and another one looks."""
    with engine.connect() as connection, engine.connect() as alone, engine.connect() as looking:
        connection.execute(CLEAR)
        sync_routes(connection, ROUTES)
        for acting in (connection, alone):
            # Nothing here asks whether a commit outlives the server, and waiting for the disk would take most of the time.
            acting.execute(text("SET synchronous_commit = off"))
            acting.commit()
        alone.execution_options(isolation_level="AUTOCOMMIT")
        eye = cast("psycopg.Connection[dict[str, Any]]", looking.connection.driver_connection)
        eye.autocommit, eye.row_factory = True, dict_row
        try:
            yield type("Sequence", (Machine,), {"connection": connection, "alone": alone, "eye": eye, "moved": set()})
        finally:
            for used in (connection, alone, looking):
                used.invalidate()
    with engine.begin() as cleaning:
        cleaning.execute(text("DELETE FROM routes"))


def new_task(task: Task) -> NewTask:
    return NewTask(
        id=task.id,
        type=task.type,
        payload={},
        queue=task.queue,
        lane="sync",
        priority=task.priority,
        timeout=60.0,
        max_attempts=task.max_attempts,
        run_at=TIMES[task.run_at],
        expires_at=TIMES[task.expires],
        tags=task.tags,
        unique_key=task.unique_key,
    )


def report(task: Task, slip: int, outcome: str) -> Finished:
    kind, delay = ("retry", 1000.0) if outcome == "retry later" else (outcome, 0.0)
    error = {"code": "wrong", "message": "it went wrong"} if kind in ("failed", "retry") else None
    return Finished(task.id, max(0, task.fence + slip), cast(Any, kind), result='"done"' if kind == "succeeded" else None, error=error, delay=delay)
