"""What a worker counts costs its tasks no statement, and what it gives back costs one wake-up."""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event

from taskyard import metrics
from taskyard.channels import READY
from taskyard.metrics import FINISHED, STALE, WAIT, Tally
from taskyard.records import Finished
from taskyard.settings import DatabaseSettings, Settings
from taskyard_worker.ledger import Ledger
from tests.core.life import TYPES, Life

TASKS = 50


def test_fifty_tasks_are_counted_by_two_statements(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FLUSH_EVERY", 3600.0)
    life = Life(engine)
    worker = life.worker()
    tasks = [life.queued() for _ in range(TASKS)]
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement))
    ledger = Ledger(engine, Settings(database=DatabaseSettings(url=SecretStr(database_url))), worker, TYPES, Tally(TYPES, ["default"]))

    async def work() -> None:
        for task in tasks:
            [row] = await ledger.claim("default", "sync", [task])
            ended: Any = Finished(task, row["fence"], "succeeded", result="1")
            await ledger.finish([ended], {})
        assert await ledger.finish([ended], {}) == {}

    ledger.start()
    asyncio.run(work())
    ledger.stop(20)
    assert len([statement for statement in statements if "counters" in statement]) == 2, "the first flush, and the one at the stop"
    labels = ("demo.work", "default")
    with engine.connect() as connection:
        counted = metrics.read(connection)
    assert counted[FINISHED.name, (*labels, "succeeded")] == TASKS
    assert sum(value for (name, _), value in counted.items() if name == WAIT.bucket_name) == TASKS
    assert counted[STALE.name, ("finish",)] == 1


def test_tasks_that_are_given_back_wake_the_dispatchers_once_and_what_was_no_longer_queued_wakes_nobody(engine: Engine, database_url: str) -> None:
    life = Life(engine)
    ledger = Ledger(engine, Settings(database=DatabaseSettings(url=SecretStr(database_url))), life.worker(), TYPES, Tally(TYPES, ["default"]))
    tasks = [life.queued() for _ in range(3)]

    async def work() -> None:
        for _ in range(2):
            await ledger.withdraw({("default", "sync")}, tasks)

    with psycopg.connect(database_url, autocommit=True) as listening:
        listening.execute(f"LISTEN {READY}")
        ledger.start()
        asyncio.run(work())
        ledger.stop(20)
        life.execute(f"SELECT pg_notify('{READY}', 'the end')")
        heard = list(takewhile(lambda payload: payload != "the end", (notice.payload for notice in listening.notifies())))
    assert heard == ["default/sync"]
    assert {life.status(task) for task in tasks} == {"pending"}
