"""Two at once: whatever the order, one wins and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from taskyard import lifecycle
from taskyard.errors import IllegalTransition
from taskyard.records import Finished

from .life import MAX_LOST, PARK_DELAY, TYPES, Life, begin, counts

ROUNDS = 100


def race(life: Life, *works: Callable[[Connection], Any]) -> list[Any]:
    """Do each in its own transaction, all started together; answers what they return or refuse with."""
    barrier = threading.Barrier(len(works), timeout=20)

    def one(work: Callable[[Connection], Any]) -> Any:
        with begin(life.engine) as connection:
            barrier.wait()
            try:
                with connection.begin():
                    return work(connection)
            except IllegalTransition as refused:
                return refused

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


def claiming(worker: UUID, tasks: list[UUID]) -> Callable[[Connection], list[Any]]:
    def work(connection: Connection) -> list[Any]:
        rows = lifecycle.claim(connection, worker, "default", "sync", tasks, TYPES, PARK_DELAY)
        return [row["id"] for row in rows if row["status"] == "running"]

    return work


def cancelling(task: UUID) -> Callable[[Connection], Any]:
    return lambda connection: lifecycle.cancel(connection, "default", task)


def retrying(task: UUID) -> Callable[[Connection], Any]:
    return lambda connection: lifecycle.finish(connection, [Finished(task, 1, "retry")], MAX_LOST)


def test_of_workers_that_claim_the_same_hints_one_gets_each(life: Life) -> None:
    workers = [life.worker("w1"), life.worker("w2")]
    for _ in range(ROUNDS):
        tasks = [life.submit() for _ in range(3)]
        life.dispatch()
        one, two = race(life, claiming(workers[0], tasks), claiming(workers[1], tasks[::-1]))
        assert sorted(one + two) == sorted(tasks)
        assert [counts(life.row(task)) for task in tasks] == [(1, 1, 0)] * 3


def test_hints_of_different_tasks_never_share_a_more_urgent_one(life: Life) -> None:
    workers = [life.worker("w1"), life.worker("w2")]
    for _ in range(ROUNDS // 2):
        hinted = [life.queued(priority=1), life.queued(priority=1)]
        urgent = life.submit(priority=9)
        taken = race(life, claiming(workers[0], hinted[:1]), claiming(workers[1], hinted[1:]))
        ran = [task for claimed in taken for task in claimed]
        assert len(ran) == len(set(ran))
        assert counts(life.row(urgent)) == (1, 1, 0)
        life.execute("DELETE FROM tasks")


def test_claim_against_cancel_ends_cancelled_or_running_and_asked(life: Life) -> None:
    worker = life.worker()
    for _ in range(ROUNDS):
        task = life.queued()
        claimed, _ = race(life, claiming(worker, [task]), cancelling(task))
        row = life.row(task)
        if claimed:
            assert (row["status"], row["cancel_requested_at"] is not None) == ("running", True)
            assert life.event_types(task) == ["submitted", "started", "cancel_requested"]
        else:
            assert (row["status"], life.event_types(task)) == ("cancelled", ["submitted", "cancelled"])


def test_claim_against_sweep_is_one_run_and_at_most_one_more_message(life: Life) -> None:
    worker = life.worker()
    for _ in range(ROUNDS):
        task = life.queued()
        life.pass_time(task, "queued_at")
        claimed, hints = race(life, claiming(worker, [task]), lambda c: lifecycle.dispatch(c, "default", "sync", 10, 30).hints)
        assert claimed == [task]
        assert [hint.id for hint in hints] in ([], [task])
        assert counts(life.row(task)) == (1, 1, 0)


def test_finish_against_cancel_agrees_with_the_history(life: Life) -> None:
    for _ in range(ROUNDS):
        task = life.running()
        _, answer = race(
            life,
            retrying(task),
            cancelling(task),
        )
        assert not isinstance(answer, IllegalTransition)
        assert life.status(task) == "cancelled"
        assert life.event_types(task)[2:] in (["cancel_requested", "cancelled"], ["retrying", "cancelled"])


def test_of_two_that_cancel_one_writes_the_event(life: Life) -> None:
    for status in ("queued", "running") * 10:
        task = life.in_status(status)
        race(life, *[cancelling(task)] * 2)
        assert len([event for event in life.event_types(task) if event.startswith("cancel")]) == 1


def test_a_finish_waits_for_a_cancel_that_is_under_way_and_heeds_it(life: Life) -> None:
    task = life.running()
    with begin(life.engine) as cancelling, ThreadPoolExecutor(1) as pool:
        lifecycle.cancel(cancelling, "default", task)
        finish = pool.submit(life.finish, Finished(task, 1, "retry", delay=10))
        life.await_lock(finish)
        cancelling.commit()
        assert [row["status"] for row in finish.result()] == ["cancelled"]


@pytest.mark.parametrize("verb", ["cancel", "hold"])
def test_a_claim_waits_for_a_person_and_then_finds_nothing(life: Life, verb: str) -> None:
    task, worker = life.queued(), life.worker()
    with begin(life.engine) as person, ThreadPoolExecutor(1) as pool:
        getattr(lifecycle, verb)(person, "default", task)
        claim = pool.submit(life.claim, worker, task)
        life.await_lock(claim)
        person.commit()
        assert claim.result() == []


def test_a_reap_passes_over_a_worker_that_is_claiming(life: Life) -> None:
    task, worker = life.queued(), life.worker(silent=60)
    with begin(life.engine) as claiming_:
        assert claiming(worker, [task])(claiming_) == [task]
        assert life.reap() == []
        claiming_.commit()
    assert [row["id"] for row in life.reap()] == [task]


def test_a_claim_waits_for_a_reap_of_its_worker_and_finds_itself_gone(life: Life) -> None:
    task, worker = life.queued(), life.worker(silent=60)
    with begin(life.engine) as reaping, ThreadPoolExecutor(1) as pool:
        assert lifecycle.reap(reaping, 15, MAX_LOST) == []
        claim = pool.submit(life.claim, worker, task)
        life.await_lock(claim)
        reaping.commit()
        assert claim.result() == []
    assert life.status(task) == "queued"


def test_a_claim_that_commits_while_a_reap_looks_is_reaped_too(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reap has its snapshot, but not yet the lock on the worker's row, when a claim comes and goes."""
    task, worker = life.queued(), life.worker(silent=60)
    life.execute(
        """CREATE FUNCTION held_up(float8) RETURNS interval LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_lock(7); PERFORM pg_advisory_unlock(7); RETURN $1 * interval ''1 second''; END'"""
    )
    monkeypatch.setattr(lifecycle, "_SILENT", text(str(lifecycle._SILENT).replace(":silence * interval '1 second'", "held_up(:silence)")))
    try:
        with begin(life.engine) as gate, ThreadPoolExecutor(1) as pool:
            gate.execute(text("SELECT pg_advisory_lock(7)"))
            reap = pool.submit(life.reap)
            life.await_lock(reap)
            assert len(life.claim(worker, task)) == 1
            gate.execute(text("SELECT pg_advisory_unlock(7)"))
            assert [row["id"] for row in reap.result()] == [task]
    finally:
        life.execute("DROP FUNCTION held_up")
    assert life.status(task) == "pending"


def test_reap_against_claim_leaves_no_run_without_a_worker(life: Life) -> None:
    for _ in range(ROUNDS):
        worker, task = life.worker(silent=60), life.queued()
        race(life, claiming(worker, [task]), lambda c: lifecycle.reap(c, 15, MAX_LOST))
        assert life.column("SELECT id FROM tasks t WHERE status = 'running' AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = t.worker_id)") == []
        life.execute("DELETE FROM tasks")
        life.execute("DELETE FROM workers")


def test_two_reapers_share_the_silent(life: Life) -> None:
    for _ in range(10):
        tasks = [life.running(life.worker(silent=60)) for _ in range(4)]
        rows = race(life, *[lambda c: lifecycle.reap(c, 15, MAX_LOST)] * 2)
        assert sorted(row["id"] for reaped in rows for row in reaped) == sorted(tasks)
        assert [counts(life.row(task)) for task in tasks] == [(0, 1, 1)] * 4
        life.execute("DELETE FROM tasks")
