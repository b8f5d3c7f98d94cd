"""A worker that was silent and comes back while it is being reaped: both end, and neither is asked to try again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
import uuid_utils.compat as uuid7
from sqlalchemy import Connection, Engine, text

from taskyard import lifecycle
from taskyard.metrics import Tally
from taskyard.records import Finished, NewTask
from taskyard.retrying import transaction
from taskyard.settings import Settings
from taskyard_worker.ledger import Ledger
from taskyard_worker.ledger_requests import Call, Claim, Finish, Request

NOBODY = cast("asyncio.Future[Any]", None)


def _running_and_queued(engine: Engine, worker: UUID) -> tuple[UUID, UUID]:
    """A task that a silent worker runs, and one that is queued."""
    task, other = (NewTask(uuid7.uuid7(), "t.echo", {}, queue, "sync", 5, 60.0, 3) for queue in ("default", "other"))
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["default"], {})
        lifecycle.submit(connection, [task, other])
        for queue in ("default", "other"):
            lifecycle.dispatch(connection, queue, "sync", 1, 30)
        assert lifecycle.claim(connection, worker, "default", "sync", [task.id], ["t.echo"], 60)
        connection.execute(text("UPDATE workers SET beat_at = now() - interval '1 minute'"))
    return task.id, other.id


def _finish(task: UUID, *_: UUID) -> Request:
    return Finish(NOBODY, [Finished(task, 1, "succeeded")], {})


def _claim(_task: UUID, other: UUID, _: UUID) -> Request:
    return Claim(NOBODY, "other", "sync", [other])


def _beat(_task: UUID, _other: UUID, worker: UUID) -> Request:
    return Call(NOBODY, partial(lifecycle.beat, worker=worker))


def _progress(task: UUID, *_: UUID) -> Request:
    return Call(NOBODY, partial(lifecycle.progress, said={(task, 1): {"fraction": 0.5}}))


def _await_lock(engine: Engine, waiter: Future[Any]) -> None:
    with engine.connect() as connection:
        waits = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        while not connection.execute(waits).scalar():
            assert not waiter.done(), waiter.result()
            connection.rollback()


@pytest.mark.parametrize(
    "says",
    [[_finish, _claim], [_finish, _beat], [_progress, _beat], [_finish, _progress, _claim, _beat]],
    ids=["finish and claim", "finish and beat", "progress and beat", "all"],
)
@pytest.mark.parametrize("uncertain", [False, True])
def test_a_worker_that_comes_back_waits_for_its_reap(engine: Engine, says: list[Callable[[UUID, UUID, UUID], Request]], uncertain: bool) -> None:
    worker = uuid7.uuid7()
    task, other = _running_and_queued(engine, worker)
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    ledger._uncertain = uncertain

    def come_back() -> list[Any]:
        with engine.begin() as connection:
            return [value for _, value in ledger._perform(connection, [say(task, other, worker) for say in says]).by_request]

    with engine.connect() as reaping, ThreadPoolExecutor(1) as pool:
        silent = list(reaping.execute(lifecycle._SILENT, {"silence": 15}).scalars())
        assert silent == [worker]
        back = pool.submit(come_back)
        _await_lock(engine, back)
        reaped = reaping.execute(lifecycle._REAP, {"workers": silent, "max_lost": 3}).mappings().all()
        reaping.commit()
        assert [row["id"] for row in reaped] == [task]
        assert not any(back.result(20)), "its claim finds nothing, its beat and its writes come too late"
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, status, lost FROM tasks")).all()
    assert {tuple(row) for row in rows} == {(task, "pending", 1), (other, "queued", 0)}


def test_a_commit_and_a_bulk_action_that_deadlock_are_both_done(engine: Engine) -> None:
    """PostgreSQL ends one of the two: whichever it is runs again, and nobody hears of it."""
    worker = uuid7.uuid7()
    running, queued = _running_and_queued(engine, worker)
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    asking, holding = asyncio.new_event_loop(), threading.Event()
    finish, claim = Finish(asking.create_future(), [Finished(running, 1, "succeeded")], {}), Claim(asking.create_future(), "other", "sync", [queued])

    def commit() -> object:
        assert holding.wait(20)
        return ledger._write([claim, finish])

    def cancel(connection: Connection, committing: Future[object]) -> None:
        lifecycle.move_many(connection, "cancel", "default", [running])
        if not holding.is_set():
            holding.set()
            # The ledger has claimed, and waits for the row that is held here.
            _await_lock(engine, committing)
        lifecycle.move_many(connection, "cancel", "default", [queued])

    with ThreadPoolExecutor(2) as pool:
        committing = pool.submit(commit)
        cancelling = pool.submit(transaction, engine, cancel, committing)
        assert committing.result(60) == {}, "nothing is left to write"
        cancelling.result(60)
    asking.close()
    with engine.connect() as connection:
        rows = {row.id: row for row in connection.execute(text("SELECT id, status, cancel_requested_at IS NOT NULL AS asked FROM tasks"))}
    assert rows[running].status == "succeeded"
    assert (rows[queued].status, rows[queued].asked) in {("running", True), ("cancelled", True)}


def test_a_task_that_steps_back_for_a_more_urgent_one_is_announced(engine: Engine) -> None:
    worker = uuid7.uuid7()
    _, queued = _running_and_queued(engine, worker)
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    urgent = NewTask(uuid7.uuid7(), "t.echo", {}, "other", "sync", 9, 60.0, 3)
    with engine.connect() as listening:
        listening.exec_driver_sql("LISTEN taskyard_ready")
        listening.commit()
        with engine.begin() as connection:
            lifecycle.submit(connection, [urgent])
            ((_, claimed),) = ledger._perform(connection, [_claim(queued, queued, worker)]).by_request
        assert [row["id"] for row in claimed] == [urgent.id]
        driver = listening.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        assert [note.payload for note in driver.notifies(timeout=20, stop_after=1)] == ["other/sync"]
