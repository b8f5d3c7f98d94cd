"""What handlers log, in PostgreSQL: by the fence of its run, in its order, and no more of it than is said."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from taskyard import tasklogs

from .life import Life
from .test_retention import age, purge


def row(task: UUID, fence: int, *messages: str, dropped: int = 0) -> str:
    lines = [{"time": "2026-01-01T00:00:00Z", "level": "info", "message": message, "fields": {"n": 1}} for message in messages]
    return json.dumps([{"id": str(task), "fence": fence, "dropped": dropped, "lines": lines}])


def write(life: Life, rows: str) -> list[UUID]:
    with life.engine.begin() as connection:
        return tasklogs.write(connection, rows)


def kept(life: Life, task: UUID) -> list[str]:
    return life.column("SELECT message FROM task_logs WHERE task_id = :id ORDER BY id", id=task)


def dropped(life: Life, task: UUID) -> list[int]:
    return life.column("SELECT dropped FROM task_log_totals WHERE task_id = :id", id=task)


def test_lines_are_kept_in_their_order_and_change_no_task(life: Life) -> None:
    task = life.running()
    before = life.row(task)
    assert write(life, row(task, 1, *map(str, range(50)))) == [task]
    assert write(life, row(task, 1, "last", dropped=3)) == [task]
    assert kept(life, task) == [*map(str, range(50)), "last"]
    assert dropped(life, task) == [3]
    assert life.row(task) == before


def test_a_stale_runs_lines_change_nothing(life: Life) -> None:
    task = life.running(life.worker(silent=100))
    assert write(life, row(task, 1, "mine")) == [task]
    life.reap()
    assert write(life, row(task, 1, "late", dropped=7)) == [], "nobody runs it"
    life.run(task)
    assert write(life, row(task, 1, "later", dropped=7)) == [], "another runs it"
    assert write(life, row(task, 2, "theirs")) == [task]
    life.end(task, "succeeded")
    assert write(life, row(task, 2, "too late", dropped=7)) == []
    assert (kept(life, task), dropped(life, task)) == (["mine", "theirs"], [0])


def test_beyond_the_bound_the_oldest_go_and_are_counted(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasklogs, "LIMIT", 2_000)
    task, other = life.running(), life.running()
    write(life, row(other, 1, "x" * 1_500))
    for number in range(0, 100, 10):
        write(life, row(task, 1, *(f"{n:03}" for n in range(number, number + 10))))
        assert life.column("SELECT sum(bytes) FROM task_logs WHERE task_id = :id", id=task)[0] <= 2_000
    left = kept(life, task)
    assert left == [f"{n:03}" for n in range(100 - len(left), 100)]
    assert dropped(life, task) == [100 - len(left)]
    totals = life.column("SELECT bytes FROM task_log_totals WHERE task_id = :id", id=task)
    assert totals == life.column("SELECT sum(bytes) FROM task_logs WHERE task_id = :id", id=task)
    assert totals[0] > 2_000 - 120, "no more went than had to"
    assert len(kept(life, other)) == 1
    shortest = life.column("SELECT min(bytes) FROM task_logs")[0] - len("000") - len('"n": 1')
    assert shortest >= tasklogs.SHORTEST


def test_lines_go_with_their_task(life: Life) -> None:
    tasks = [life.running(), life.running()]
    for task in tasks:
        write(life, row(task, 1, "said"))
        life.end(task, "succeeded")
    for table in ("task_logs", "task_log_totals"):
        assert len(life.column(f"SELECT task_id FROM {table}")) == 2
    old = UUID(int=tasks[0].int - (10 * 86_400_000 << 80))
    for table in ("task_logs", "task_log_totals"):
        life.execute(f"UPDATE {table} SET task_id = :old WHERE task_id = :id", old=old, id=tasks[0])
    age(life, tasks[0])
    assert purge(life.engine, succeeded=1) == 1
    for table in ("task_logs", "task_log_totals"):
        assert life.column(f"SELECT task_id FROM {table}") == [tasks[1]]
