"""Two verbs at one task at one time, 500 times on each PostgreSQL, 1,000 in CI: each outcome is one of the two orders', whole.

Two threads meet before each round. In every tenth round one waits for the other, so that both orders surely occur; in the
others they start together, some with a slight delay. ``pytest -s`` shows how many were won by whom, and truly overlapped.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7
from sqlalchemy import Connection, text

from taskyard import lifecycle
from taskyard.errors import IllegalTransition
from taskyard.records import Finished

from .life import MAX_LOST, PARK_DELAY, STALE, TYPES, Life, new

ROUNDS = 500
Verb = Callable[[Connection, UUID], Any]
HISTORY = """
SELECT t.id, t.status, t.attempt, t.fence, t.lost, t.queued_at, t.worker_id,
  ARRAY(SELECT replace(e.type, 'task.', '') FROM events e WHERE e.task_id = t.id ORDER BY e.id) AS events
FROM tasks t"""


@dataclass
class Race:
    """Two verbs, on tasks of their own queues: each round has one. ``arm`` comes before the round."""

    life: Life
    tasks: list[UUID]
    first: Verb
    second: Verb
    arm: Verb = lambda connection, task: None
    answers: dict[UUID, tuple[Any, Any]] = field(default_factory=dict)
    overlapped: int = 0

    def run(self) -> dict[UUID, Any]:
        """Run all rounds; answers the tasks' rows with their events."""
        jitter = random.Random(1)
        self._orders = [("first" if n % 20 else "second") if n % 10 == 0 else "" for n in range(len(self.tasks))]
        self._delays = [(jitter.choice((0, 0, 0.0005, 0.001)), jitter.choice((0, 0, 0.0005, 0.001))) for _ in self.tasks]
        self._done = [threading.Event() for _ in self.tasks]
        self._barrier = threading.Barrier(2, timeout=30)
        with ThreadPoolExecutor(2) as pool:
            sides = [pool.submit(self._side, n) for n in (0, 1)]
            told = [side.result() for side in sides]
        for task, (one, start_one, end_one), (two, start_two, end_two) in zip(self.tasks, *told, strict=True):
            self.answers[task] = one, two
            self.overlapped += max(start_one, start_two) < min(end_one, end_two)
        with self.life.engine.connect() as connection:
            return {row["id"]: row for row in connection.execute(text(HISTORY)).mappings()}

    def _side(self, side: int) -> list[tuple[Any, float, float]]:
        verb, name = (self.first, self.second)[side], ("first", "second")[side]
        told = []
        with self.life.engine.connect() as connection:
            connection.execute(text("SET synchronous_commit = off"))
            connection.execute(text("SET lock_timeout = '20s'"))
            connection.commit()
            for n, task in enumerate(self.tasks):
                if side == 0:
                    with connection.begin():
                        self.arm(connection, task)
                self._barrier.wait()
                if (order := self._orders[n]) not in ("", name):
                    assert self._done[n].wait(20)
                elif not order and self._delays[n][side]:
                    time.sleep(self._delays[n][side])
                told.append(self._once(connection, verb, task))
                if order == name:
                    self._done[n].set()
                self._barrier.wait()
        return told

    def _once(self, connection: Connection, verb: Verb, task: UUID) -> tuple[Any, float, float]:
        start = time.perf_counter()
        try:
            with connection.begin():
                answer = verb(connection, task)
        except IllegalTransition as refused:
            answer = refused
        return answer, start, time.perf_counter()


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[Race, Counter[str]], None]:
    """Checks that every round counted, and that both orders occurred; says what the split was."""

    def tell(race: Race, split: Counter[str]) -> None:
        print(f"\n{request.node.name}: {dict(split)}, {race.overlapped} of {len(race.tasks)} overlapped")
        assert split.total() == ROUNDS
        assert len(split) > 1, "only one order occurred"
        assert race.overlapped > 0

    return tell


def tasks_in(life: Life, status: str, *, worker: UUID | None = None) -> list[UUID]:
    """So many tasks in a status, each in a queue that is named by its id, brought there in a few statements."""
    made = [new(id=(id_ := uuid7.uuid7()), queue=queue_of(id_)) for _ in range(ROUNDS)]
    owner = worker or life.worker()
    with life.engine.begin() as connection:
        lifecycle.submit(connection, made)
        if status == "pending":
            return [task.id for task in made]
        for task in made:
            assert lifecycle.dispatch(connection, task.queue, "sync", 1, STALE).hints
            if status != "queued":
                lifecycle.claim(connection, owner, task.queue, "sync", [task.id], TYPES, PARK_DELAY)
        if status == "failed":
            lifecycle.finish(connection, [Finished(task.id, 1, "failed", error={"code": "wrong"}) for task in made], MAX_LOST)
    return [task.id for task in made]


def queue_of(task: UUID) -> str:
    return f"q-{task}"


def claiming(worker: UUID) -> Verb:
    def claim(connection: Connection, task: UUID) -> list[UUID]:
        rows = lifecycle.claim(connection, worker, queue_of(task), "sync", [task], TYPES, PARK_DELAY)
        return [row["id"] for row in rows if row["status"] == "running"]

    return claim


def finishing(outcome: Callable[[UUID], Any]) -> Verb:
    return lambda connection, task: [row["status"] for row in lifecycle.finish(connection, [Finished(task, 1, outcome(task))], MAX_LOST)]


def cancelling(connection: Connection, task: UUID) -> Any:
    return lifecycle.cancel(connection, "default", task)


def dispatching(connection: Connection, task: UUID) -> Any:
    return [hint.id for hint in lifecycle.dispatch(connection, queue_of(task), "sync", 1, STALE).hints]


def reaping(connection: Connection, task: UUID) -> list[UUID]:
    return [row["id"] for row in lifecycle.reap(connection, 15, MAX_LOST)]


def silencing(workers: dict[UUID, UUID]) -> Verb:
    """Let the worker of a task be silent for a minute, and the others not."""
    statement = text(
        """UPDATE workers SET beat_at = CASE WHEN id = :id THEN now() - interval '1 minute' ELSE now() END
        WHERE id = :id OR beat_at < now() - interval '30 seconds'"""
    )
    return lambda connection, task: connection.execute(statement, {"id": workers[task]})


def workers_for(life: Life, tasks: list[UUID]) -> dict[UUID, UUID]:
    """A worker for each task."""
    workers = {task: uuid7.uuid7() for task in tasks}
    with life.engine.begin() as connection:
        for worker in workers.values():
            lifecycle.register_worker(connection, worker, "w", ["default"], {})
    return workers


Tell = Callable[[Race, "Counter[str]"], None]


def test_cancel_against_finish(life: Life, told: Tell) -> None:
    def succeeds(task: UUID) -> bool:
        return task.int % 2 == 0

    race = Race(life, tasks_in(life, "running"), cancelling, finishing(lambda task: "succeeded" if succeeds(task) else "retry"))
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        asked, finished = race.answers[id_]
        after = tuple(row["events"][2:])
        if succeeds(id_):
            assert (row["status"], finished) == ("succeeded", ["succeeded"])
            assert after == (("succeeded",) if isinstance(asked, IllegalTransition) else ("cancel_requested", "succeeded"))
        else:
            assert row["status"] == "cancelled"
            assert (after, finished) in ((("cancel_requested", "cancelled"), ["cancelled"]), (("retrying", "cancelled"), ["pending"]))
        split["cancel" if after[0] == "cancel_requested" else "finish"] += 1
    told(race, split)


def test_claim_against_claim(life: Life, told: Tell) -> None:
    race = Race(life, tasks_in(life, "queued"), claiming(life.worker("w1")), claiming(life.worker("w2")))
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        one, two = race.answers[id_]
        assert one + two == [id_], "one gets it, and only one"
        assert (row["status"], row["attempt"], row["fence"], row["events"]) == ("running", 1, 1, ["submitted", "started"])
        split["one" if one else "other"] += 1
    told(race, split)


def test_sweep_against_claim(life: Life, told: Tell) -> None:
    race = Race(life, tasks_in(life, "queued"), dispatching, claiming(life.worker()))
    life.execute("UPDATE tasks SET queued_at = now() - interval '1 hour'")
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        hints, claimed = race.answers[id_]
        assert (claimed, hints in ([], [id_])) == ([id_], True)
        assert (row["status"], row["attempt"], row["fence"], row["events"]) == ("running", 1, 1, ["submitted", "started"])
        split["sweep" if hints else "claim"] += 1
    told(race, split)


def test_retry_against_cancel(life: Life, told: Tell) -> None:
    race = Race(life, tasks_in(life, "failed"), lambda c, task: lifecycle.retry(c, "default", task), cancelling)
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        retried, cancelled = race.answers[id_]
        assert retried["status"] == "pending"
        refused = isinstance(cancelled, IllegalTransition)
        assert (row["status"], row["events"][3:]) == (("pending", ["retrying"]) if refused else ("cancelled", ["retrying", "cancelled"]))
        assert (row["attempt"], row["fence"]) == (0, 1)
        split["cancel" if refused else "retry"] += 1
    told(race, split)


def test_hold_against_dispatch(life: Life, told: Tell) -> None:
    race = Race(life, tasks_in(life, "pending"), lambda c, task: lifecycle.hold(c, "default", task), dispatching)
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        held, hints = race.answers[id_]
        assert held["status"] == row["status"] == "held"
        assert (row["queued_at"], row["events"]) == (None, ["submitted", "held"])
        split["dispatch" if hints else "hold"] += 1
    told(race, split)


def test_reap_against_finish(life: Life, told: Tell) -> None:
    tasks = tasks_in(life, "running")
    workers = workers_for(life, tasks)
    with life.engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET worker_id = :worker WHERE id = :task"), [{"worker": w, "task": t} for t, w in workers.items()])
    race = Race(life, tasks, reaping, finishing(lambda _: "succeeded"), arm=silencing(workers))
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        reaped, finished = race.answers[id_]
        assert (reaped, finished) in (([id_], []), ([], ["succeeded"])), "one of the two has the run, and the other finds nothing"
        then = ("pending", 0, 1, ["submitted", "started", "lost"]) if reaped else ("succeeded", 1, 0, ["submitted", "started", "succeeded"])
        assert (row["status"], row["attempt"], row["lost"], row["events"]) == then
        split["reap" if reaped else "finish"] += 1
    told(race, split)


def test_reap_against_claim(life: Life, told: Tell) -> None:
    tasks = tasks_in(life, "queued")
    workers = workers_for(life, tasks)
    race = Race(life, tasks, reaping, lambda c, task: claiming(workers[task])(c, task), arm=silencing(workers))
    rows = race.run()
    known = set(life.column("SELECT id FROM workers"))
    split: Counter[str] = Counter()
    for id_, row in rows.items():
        reaped, claimed = race.answers[id_]
        order = "claim, then reap" if reaped else "claim while the reaper passed over" if claimed else "reap"
        assert row["status"] == {"claim, then reap": "pending", "reap": "queued"}.get(order, "running")
        assert row["status"] != "running" or row["worker_id"] in known, "nothing runs without a worker that a reaper would find"
        split[order] += 1
    told(race, split)


def test_expire_against_claim(life: Life, told: Tell) -> None:
    """The expiry comes while the claim is on its way."""
    soon = text("UPDATE tasks SET expires_at = clock_timestamp() + random() * interval '3 milliseconds' WHERE id = :id")
    race = Race(
        life,
        tasks_in(life, "queued"),
        lambda c, _: [row["id"] for row in lifecycle.expire(c)],
        claiming(life.worker()),
        arm=lambda c, task: c.execute(soon, {"id": task}),
    )
    split: Counter[str] = Counter()
    for id_, row in race.run().items():
        _, claimed = race.answers[id_]
        if claimed:
            assert (row["status"], row["events"]) == ("running", ["submitted", "started"])
        elif row["status"] == "expired":
            assert row["events"] == ["submitted", "expired"]
        else:
            assert (row["status"], row["events"], row["fence"]) == ("pending", ["submitted"], 0), "too late to run: the next expire ends it"
        split[row["status"]] += 1
    with life.engine.begin() as connection:
        lifecycle.expire(connection)
    assert set(life.column("SELECT DISTINCT status FROM tasks")) == {"running", "expired"}
    told(race, split)
