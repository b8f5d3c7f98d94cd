"""Whatever goes wrong between a claim and the run of it, the task goes back in line, its slot becomes free and its message is settled."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from taskyard import lifecycle
from taskyard.settings import WorkerSettings, load_settings
from taskyard_worker import processes
from taskyard_worker.engine import Engine, Message
from taskyard_worker.processes import Nursery
from taskyard_worker.runner import Runner
from tests.stack import TESTBED, Stack, until

pytestmark = pytest.mark.one_pair


@dataclass
class Worker:
    """An engine of this process, which gets its messages by hand."""

    stack: Stack
    engine: Engine
    settled: list[str] = field(default_factory=list)

    def hint(self, *tasks: UUID, lane: str = "sync") -> None:
        """What the broker would bring."""
        with self.stack.engine.begin() as connection:
            lifecycle.dispatch(connection, "default", lane, 100, 60)
        self.engine.offer(Message("default", lane, list(tasks), lambda: None, self.settled.append, lambda _: None))

    def claim_for_nobody(self, task: UUID) -> int:
        """A claim whose answer gets lost on its way to the runner; its fence."""
        loop = self.engine._loop
        assert loop is not None
        [row] = asyncio.run_coroutine_threadsafe(self.engine._ledger.claim("default", "sync", [task]), loop).result(20)
        return int(row["fence"])

    def free(self, lane: str) -> int:
        return self.engine._lanes[lane]._free

    def beats(self) -> None:
        """Wait for a heartbeat."""
        last = self.stack.value("SELECT beat_at FROM workers")
        until(lambda: self.stack.value("SELECT beat_at FROM workers") > last, what="a heartbeat")


@pytest.fixture
def worker(own_stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Worker]:
    monkeypatch.chdir(tmp_path)
    for name, value in own_stack.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{TESTBED}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = load_settings()
    settings = settings.model_copy(update={"worker": WorkerSettings(processes=1, async_slots=2, heartbeat=0.2, stop_grace=1.0)})
    engine = Engine(settings, own_stack.registry, "by-hand", ["default"], 1, None)
    engine.start()
    until(lambda: own_stack.workers() == 1, 60, "the worker")
    yield Worker(own_stack, engine)
    engine.stop()


def _runs_everything(worker: Worker) -> None:
    """Each slot works."""
    for lane, type_ in (("sync", "t.echo"), ("async", "t.aecho")):
        for _ in range(3):
            _succeeds(worker, worker.stack.submit(type_, {"word": "x"}, queue="default"), lane)
    until(lambda: (worker.free("sync"), worker.free("async")) == (1, 2), what="free slots")


def _succeeds(worker: Worker, task: UUID, lane: str) -> None:
    """There is no dispatcher: what the worker gives back, because no slot was free in time, is hinted again."""

    def ended() -> bool:
        status = worker.stack.task(task)["status"]
        if status == "pending":
            worker.hint(task, lane=lane)
        return bool(status == "succeeded")

    until(ended, what="its success")


def test_a_claimed_task_that_nobody_in_its_worker_knows_of_goes_back_in_line(worker: Worker) -> None:
    task = worker.stack.submit("t.echo", {"word": "x"})
    with worker.stack.engine.begin() as connection:
        lifecycle.dispatch(connection, "default", "sync", 1, 60)
    fence = worker.claim_for_nobody(task)
    row = worker.stack.wait(task, "pending")
    assert (row["fence"], row["attempt"], row["lost"]) == (fence, 0, 0)
    assert worker.stack.value("SELECT data ->> 'reason' FROM events WHERE task_id = :id AND type = 'task.released'", id=task) == "its worker lost track of it"
    _runs_everything(worker)


@pytest.mark.parametrize(("lane", "type_"), [("sync", "t.echo"), ("async", "t.asleep")])
def test_a_run_that_can_not_be_begun_goes_back_in_line_and_frees_its_slot(worker: Worker, monkeypatch: pytest.MonkeyPatch, lane: str, type_: str) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("this job can't be sent")

    task = worker.stack.submit(type_)
    with monkeypatch.context() as broken:
        broken.setattr(Runner, "_units", refuse)
        worker.hint(task, lane=lane)
        until(lambda: worker.settled, what="the message's end")
    row = worker.stack.wait(task, "pending")
    assert (row["fence"], row["attempt"]) == (1, 0)
    _runs_everything(worker)


def test_a_report_that_can_not_be_read_is_a_lost_run_and_not_a_run_for_ever(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("a report of another version")

    task = worker.stack.submit("t.echo")
    with monkeypatch.context() as broken:
        broken.setattr("taskyard_worker.runner.decide", refuse)
        worker.hint(task)
        row = worker.stack.wait(task, "pending")
    assert (row["fence"], row["lost"]) == (1, 1)
    _runs_everything(worker)


def test_while_the_system_has_no_process_to_spare_a_claimed_task_waits_for_one(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []
    monkeypatch.setattr(processes, "FORK_PAUSE", 0.05)
    fork = Nursery._fork

    async def refuse(self: Nursery, kind: str) -> Any:
        refused.append(kind)
        if len(refused) <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await fork(self, kind)

    monkeypatch.setattr(Nursery, "_fork", refuse)
    task = worker.stack.submit("t.asleep", {"seconds": 0})
    with worker.stack.engine.begin() as connection:
        # One that was lost twice gets a process of its own.
        connection.execute(text("UPDATE tasks SET lost = 2 WHERE id = :id"), {"id": task})
    _succeeds(worker, task, "async")
    assert len(refused) > 3
    _runs_everything(worker)


def test_a_process_that_is_about_to_end_gets_no_task(worker: Worker) -> None:
    ending = worker.engine._runner._idle[0]
    ending.spent = True
    _succeeds(worker, worker.stack.submit("t.echo", {"word": "x"}), "sync")
    until(lambda: worker.free("sync") == 1, what="a free slot")
    assert ending not in worker.engine._runner._idle
    ending.kill()


def test_a_notification_that_can_not_be_begun_spends_no_try(worker: Worker) -> None:
    task = worker.stack.submit("t.echo", {"word": "x"})
    with worker.stack.engine.begin() as connection:
        made = text(
            """INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event, status, next_try_at)
            SELECT id, namespace, task_id, 'any', 'log', type, 'queued', now() + interval '1 hour' FROM events WHERE task_id = :task RETURNING id"""
        )
        delivery = connection.execute(made, {"task": task}).scalar_one()
        connection.execute(text("ALTER TABLE installation_secrets RENAME TO not_ours"))
    worker.engine.offer(Message("", "deliveries", [delivery], lambda: None, worker.settled.append, lambda _: None))
    until(lambda: worker.settled, what="the message's end")
    with worker.stack.engine.connect() as connection:
        row = connection.execute(text("SELECT status, attempt FROM deliveries")).one()
    assert (row.status, row.attempt) == ("queued", 0)


def test_a_row_that_somebody_keeps_locked_holds_up_neither_the_heartbeat_nor_other_tasks(worker: Worker) -> None:
    gate = worker.stack.gate()
    task = worker.stack.submit("t.agated", gate.payload(), queue="default")
    worker.hint(task, lane="async")
    worker.stack.wait(task, "running")
    with worker.stack.engine.connect() as person:
        person.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE"), {"id": task})
        gate.open()
        until(lambda: worker.engine._ledger._waiting.failures > 0, what="the first try to record its end")
        for _ in range(2):
            _succeeds(worker, worker.stack.submit("t.echo", {"word": "x"}, queue="default"), "sync")
            worker.beats()
        assert worker.stack.task(task)["status"] == "running"
        person.rollback()
    assert worker.stack.wait(task)["status"] == "succeeded"


def test_processes_that_can_not_be_started_again_at_once_are_started_later(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    start = Nursery.start

    async def refuse(self: Nursery) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("The process that loads the plugins ended at its start.")
        await start(self)

    monkeypatch.setattr(Nursery, "start", refuse)
    zygote = worker.engine._nursery._zygote
    assert zygote is not None
    zygote.kill()
    until(lambda: len(tries) == 2, what="the second try")
    _runs_everything(worker)
