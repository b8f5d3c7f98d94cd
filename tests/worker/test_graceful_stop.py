"""A worker that is asked to stop takes its leave: what it runs ends or goes back in line, whatever was under way, and then it is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psutil
import pytest
import uuid_utils.compat as uuid7
from sqlalchemy import Engine, create_engine, text

from taskyard import lifecycle
from taskyard.metrics import Tally
from taskyard.records import Finished, NewTask
from taskyard.settings import Settings
from taskyard_worker.ledger import Ledger
from tests.stack import Stack, until

WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
AS_IF_NEVER_CLAIMED = ["task.submitted", "task.started", "task.released"]


@contextmanager
def _claim_under_way(stack: Stack, *types: str) -> Iterator[list[UUID]]:
    """Tasks that the worker is claiming, and can't have before this ends. No dispatcher is left to send them again."""
    stack.processes["worker"].send_signal(signal.SIGSTOP)
    tasks = [stack.submit(type_) for type_ in types]
    for task in tasks:
        stack.wait(task, "queued")
    stack.stop("dispatcher")
    with stack.engine.begin() as connection:
        connection.execute(text("SELECT id FROM tasks WHERE id = ANY (:tasks) FOR UPDATE"), {"tasks": tasks})
        stack.processes["worker"].send_signal(signal.SIGCONT)
        until(lambda: stack.value(WAITS), what="the claim")
        yield tasks


def _up(stack: Stack, **env: str) -> Stack:
    stack.env.update(env)
    stack.start("dispatcher")
    stack.start("worker")
    return stack.ready()


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.echo", "t.aecho"])
def test_what_was_being_claimed_when_the_stop_came_runs_within_the_grace(own_stack: Stack, type_: str) -> None:
    stack = _up(own_stack, TASKYARD_WORKER__STOP_GRACE="30")
    with _claim_under_way(stack, type_) as tasks:
        stack.processes["worker"].terminate()
        until(lambda: "worker.drains" in stack.log("worker"), what="the stop")
    assert stack.stop("worker") == 0
    for task in tasks:
        assert stack.events(task) == ["task.submitted", "task.started", "task.succeeded"]
    assert stack.workers() == 0


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.echo", "t.aecho"])
def test_what_is_claimed_after_the_grace_is_not_begun_and_goes_back_in_line(own_stack: Stack, type_: str) -> None:
    stack = _up(own_stack, TASKYARD_WORKER__STOP_GRACE="0.1", TASKYARD_WORKER__KILL_GRACE="10", TASKYARD_WORKER__PROCESSES="2")
    # It takes the worker that long to end this one.
    deaf = stack.submit("t.deaf", timeout=60)
    stack.wait(deaf, "running")
    with _claim_under_way(stack, type_) as tasks:
        stack.processes["worker"].terminate()
        until(lambda: "worker.hands_back" in stack.log("worker"), what="the end of the grace")
    assert stack.stop("worker") == 0
    for task in [deaf, *tasks]:
        row = stack.task(task)
        assert (row["status"], row["attempt"], row["lost"], stack.events(task)) == ("pending", 0, 0, AS_IF_NEVER_CLAIMED)
    assert stack.witnessed("echo") == stack.witnessed("aecho") == []
    assert stack.workers() == 0


@pytest.mark.one_pair
def test_a_signal_to_every_process_of_a_worker_is_as_gentle_as_one_to_the_worker(own_stack: Stack) -> None:
    stack = _up(own_stack, TASKYARD_WORKER__STOP_GRACE="30")
    gate = stack.gate()
    tasks = [stack.submit(type_, gate.payload()) for type_ in ("t.gated", "t.agated", "t.abusy")]
    for task in tasks:
        stack.wait(task, "running")
    family = stack.family("worker")
    for number in (signal.SIGTERM, signal.SIGTERM):
        for process in family:
            os.kill(process.pid, number)
    until(lambda: "worker.drains" in stack.log("worker"), what="the start of the grace")
    gate.open()
    assert stack.stop("worker") == 0
    for task in tasks:
        assert stack.events(task) == ["task.submitted", "task.started", "task.succeeded"]
    assert stack.workers() == 0
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


# --- the ledger, which has the last word ---


@pytest.fixture
def worker(engine: Engine) -> UUID:
    """A worker that runs one task, and may claim another one."""
    worker = uuid7.uuid7()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["default"], {})
        for _ in range(2):
            lifecycle.submit(connection, [NewTask(uuid7.uuid7(), "t.echo", {}, "default", "sync", 5, 60.0, 3)])
        first, _ = [hint.id for hint in lifecycle.dispatch(connection, "default", "sync", 2, 30).hints]
        assert lifecycle.claim(connection, worker, "default", "sync", [first], ["t.echo"], 60)
    return worker


def _column(engine: Engine, statement: str) -> list[object]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)).scalars())


def _ended(ledger: Ledger) -> None:
    ledger.stop(60)
    assert not ledger._thread.is_alive()


def test_what_is_to_be_written_is_written_before_the_worker_is_forgotten(engine: Engine, worker: UUID) -> None:
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    [running] = _column(engine, "SELECT id FROM tasks WHERE status = 'running'")
    assert isinstance(running, UUID)

    async def asked() -> None:
        # Asked for, and not begun: the thread that does it is started afterwards.
        finish = asyncio.ensure_future(ledger.finish([Finished(running, 1, "succeeded", result="1")], {}))
        await asyncio.sleep(0)
        assert not finish.done()

    asyncio.run(asked())
    ledger.start()
    _ended(ledger)
    assert _column(engine, "SELECT status FROM tasks ORDER BY id") == ["succeeded", "queued"]
    assert _column(engine, "SELECT name FROM workers") == []


def test_a_lost_connection_does_not_keep_a_stopping_worker_registered(engine: Engine, worker: UUID) -> None:
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    ledger.start()
    # The connection that waits in the pool is cut.
    apart = create_engine(engine.url)
    _column(apart, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    _ended(ledger)
    assert _column(apart, "SELECT name FROM workers") == []
    apart.dispose()


def test_what_nobody_knows_to_be_running_goes_back_in_line(engine: Engine, worker: UUID) -> None:
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    [queued] = _column(engine, "SELECT id FROM tasks WHERE status = 'queued'")
    assert isinstance(queued, UUID)

    async def asked() -> None:
        claim = asyncio.ensure_future(ledger.claim("default", "sync", [queued]))
        with engine.begin() as connection:
            connection.execute(text("SELECT id FROM tasks WHERE id = :id FOR UPDATE"), {"id": queued})
            ledger.start()
            await asyncio.sleep(0)
            await asyncio.to_thread(until, lambda: _column(engine, WAITS)[0], 20, "the claim")
            ledger.stop(0)
            assert not claim.done()
        _ended(ledger)

    asyncio.run(asked())
    assert _column(engine, "SELECT status FROM tasks") == ["pending", "pending"]
    assert _column(engine, "SELECT attempt FROM tasks") == [0, 0]
    assert _column(engine, "SELECT data ->> 'reason' FROM events WHERE type = 'task.released'") == ["worker stopping", "worker stopping"]
    assert _column(engine, "SELECT name FROM workers") == []
