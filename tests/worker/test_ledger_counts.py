"""What a worker counts costs its tasks no statement."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event

from taskyard import metrics
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
