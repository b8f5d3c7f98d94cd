"""Children are submitted by the run that succeeded, and by no other of the same task."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uuid_utils.compat as uuid7
from sqlalchemy import Engine, text

from taskyard import lifecycle
from taskyard.metrics import Tally
from taskyard.records import Finished, NewTask
from taskyard.settings import Settings
from taskyard_worker.ledger import Ledger
from taskyard_worker.ledger_requests import Finish

NOBODY = cast("asyncio.Future[Any]", None)


def _task() -> NewTask:
    return NewTask(uuid7.uuid7(), "t.echo", {}, "default", "sync", 5, 60.0, 3)


def test_a_stale_run_that_is_recorded_together_with_the_one_that_counts_leaves_no_children(engine: Engine) -> None:
    worker, parent, stale, true = uuid7.uuid7(), _task(), _task(), _task()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["default"], {})
        lifecycle.submit(connection, [parent])
        for _ in range(2):
            lifecycle.dispatch(connection, "default", "sync", 1, 30)
            [row] = lifecycle.claim(connection, worker, "default", "sync", [parent.id], ["t.echo"], 60)
            if row["fence"] == 1:
                lifecycle.finish(connection, [Finished(parent.id, 1, "lost")], 3)
    # As after an outage: the first run's record was kept, and is written together with the second one's.
    requests = [
        Finish(NOBODY, [Finished(parent.id, 1, "succeeded", result="1")], {(parent.id, 1): [stale]}),
        Finish(NOBODY, [Finished(parent.id, 2, "succeeded", result="2")], {(parent.id, 2): [true]}),
    ]
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    with engine.begin() as connection:
        answers = ledger._perform(connection, list(requests))
    assert [(finished.fence, row is not None) for finished, row in answers.finished] == [(1, False), (2, True)]
    with engine.connect() as connection:
        assert list(connection.execute(text("SELECT id FROM tasks WHERE id <> :id"), {"id": parent.id}).scalars()) == [true.id]
        assert connection.execute(text("SELECT result FROM tasks WHERE id = :id"), {"id": parent.id}).scalar() == 2


def test_a_success_whose_commit_got_no_answer_and_is_repeated_leaves_its_children_once(engine: Engine) -> None:
    worker, parent, child = uuid7.uuid7(), _task(), _task()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["default"], {})
        lifecycle.submit(connection, [parent])
        lifecycle.dispatch(connection, "default", "sync", 1, 30)
        lifecycle.claim(connection, worker, "default", "sync", [parent.id], ["t.echo"], 60)
    request = Finish(NOBODY, [Finished(parent.id, 1, "succeeded", result="1")], {(parent.id, 1): [child]})
    ledger = Ledger(engine, Settings(), worker, ["t.echo"], Tally())
    for recorded in (True, False):
        with engine.begin() as connection:
            [(_, row)] = ledger._perform(connection, [request]).finished
        assert (row is not None) is recorded
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar() == 2
        assert connection.execute(text("SELECT count(*) FROM events WHERE task_id = :id"), {"id": child.id}).scalar() == 1
