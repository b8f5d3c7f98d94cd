"""A deep backlog stays cheap: live moves are heap-only, and what runs often reads an index."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, TextClause, event, text

from taskyard import backlog, deliveries, lifecycle, place, queries
from taskyard.database import sync_engine
from taskyard.dispatch import look
from taskyard.records import Finished
from taskyard.settings import DatabaseSettings
from tests.stack import PATIENCE

from .life import PARK_DELAY, TYPES, Life, new

BACKLOG, RUNNING = 200_000, 2_000


def updates(connection: Connection) -> tuple[int, int]:
    """(updated, of them heap-only) rows of tasks that this connection has not yet reported."""
    row = connection.execute(text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'tasks'")).one()
    return row[0], row[1]


def test_a_tasks_way_to_its_run_is_heap_only(life: Life) -> None:
    # Room is made by pruning, and what may be pruned is only guessed at while a transaction of any database of the server is old.
    # Those of other tests on a shared server end within their own time.
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        seen = way(life)
        assert [updated for updated, _ in seen.values()] == [200] * len(seen)
        # Where all rows of a page grow in one statement, the last ones may find it full.
        if min(heap_only for _, heap_only in seen.values()) > 170:
            return
    pytest.fail(f"updates, and of them heap-only: {seen}")


def way(life: Life) -> dict[str, tuple[int, int]]:
    """Bring 200 tasks to their run and a bit further: rows updated, and of them heap-only, by step."""
    parent = uuid4()
    tasks = [new(tags=("a",), unique_key=str(uuid4()), expires_at="2999-01-01T00:00:00Z", parent_id=parent) for _ in range(200)]
    ids, worker = [task.id for task in tasks], life.worker()
    steps: dict[str, Any] = {
        "dispatch": lambda c: lifecycle.dispatch(c, "default", "sync", 200, 30),
        "withdraw": lambda c: lifecycle.withdraw(c, ids),
        "dispatch again": lambda c: lifecycle.dispatch(c, "default", "sync", 200, 30),
        "claim": lambda c: lifecycle.claim(c, worker, "default", "sync", ids, TYPES, PARK_DELAY),
        "await": lambda c: lifecycle.await_ends(c, [("default", id_) for id_ in ids]),
        "progress": lambda c: lifecycle.progress(c, {(id_, 1): {"fraction": 0.5} for id_ in ids}),
    }
    with life.engine.begin() as connection:
        lifecycle.submit(connection, tasks)
    seen: dict[str, tuple[int, int]] = {}
    for name, step in steps.items():
        with life.engine.begin() as connection:
            before = updates(connection)
            step(connection)
            after = updates(connection)
            seen[name] = (after[0] - before[0], after[1] - before[1])
    return seen


@pytest.fixture(scope="module")
def deep(shared_engine: Engine) -> Iterator[Connection]:
    """200,000 tasks in one line behind 2,000 that run, in a transaction that is never committed."""
    with shared_engine.connect() as connection:
        connection.execute(
            text("""
            INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts, fence, attempt, worker_id, started_at, expires_at)
            SELECT gen_random_uuid(), 'demo.work', 'default', 'sync', CASE WHEN n <= :running THEN 9 ELSE 5 END,
              CASE WHEN n <= :running THEN 'running' ELSE 'pending' END, '{"n": 1}', 60, 3, 1, 1, gen_random_uuid(), now(),
              CASE WHEN n % 10 = 0 THEN now() + interval '1 day' END
            FROM generate_series(1, :running + :backlog) AS n"""),
            {"running": RUNNING, "backlog": BACKLOG},
        )
        connection.execute(text("ANALYZE tasks"))
        yield connection
        connection.rollback()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def indexes(connection: Connection, statement: TextClause, **values: Any) -> set[str]:
    """The indexes of tasks that a statement reads. Fails if it reads the whole table, or most of the line."""
    savepoint = connection.begin_nested()
    explained = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"), values).scalar_one()
    savepoint.rollback()
    plan = list(nodes(explained[0]["Plan"]))
    assert not [node for node in plan if node["Node Type"].endswith("Seq Scan") and node.get("Relation Name") == "tasks"], explained
    assert max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in plan) <= 3 * RUNNING, explained
    return {node["Index Name"] for node in plan if "Index Name" in node and node["Actual Loops"]}


def test_dispatch_reads_the_head_of_the_line(deep: Connection) -> None:
    found = indexes(deep, lifecycle._DISPATCH, queue="default", lane="sync", room=256, stale=30.0)
    assert "ix_tasks_line" in found


@pytest.mark.parametrize("hinted", [1, 100])
def test_claim_reads_its_hints_and_what_stands_before_them(deep: Connection, hinted: int) -> None:
    worker = deep.execute(text("INSERT INTO workers (id, name, queues) VALUES (gen_random_uuid(), 'w', '{default}') RETURNING id")).scalar()
    ids = list(deep.execute(text("SELECT id FROM tasks WHERE in_line AND priority = 5 ORDER BY id LIMIT :n"), {"n": hinted}).scalars())
    deep.execute(text("UPDATE tasks SET status = 'queued', queued_at = now() WHERE id = ANY (:ids)"), {"ids": ids})
    values = {"worker": worker, "ids": ids, "slots": hinted, "types": list(TYPES), "park_delay": 30.0}
    assert indexes(deep, lifecycle._CLAIM, queue="default", lane="sync", **values) >= {"ix_tasks_line", "pk_tasks"}


def test_the_dispatchers_looks_read_the_first_entries(deep: Connection) -> None:
    assert indexes(deep, look._LOOK, silence=15.0) >= {"ix_tasks_due", "ix_tasks_expiry"}
    assert indexes(deep, look._LINES, queues=["default", "other"]) - {"pk_queues"} == {"ix_tasks_line"}


def test_a_scrape_counts_from_the_head_of_each_line_and_finds_the_oldest_behind_what_runs(deep: Connection) -> None:
    known = {"known": ["default", "empty"], "hops": backlog.QUEUE_LIMIT}
    assert indexes(deep, backlog._IN_LINE, cap=RUNNING, budget=backlog.COUNT_BUDGET, **known) == {"ix_tasks_line"}
    assert indexes(deep, backlog._OLDEST, **known) == {"ix_tasks_line"}
    assert indexes(deep, backlog._WAITING, cap=RUNNING) == {"ix_tasks_due"}


def test_parked_tasks_are_found_before_all_that_is_planned(deep: Connection) -> None:
    savepoint = deep.begin_nested()
    deep.execute(
        text("""
        INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts, next_run_at)
        SELECT gen_random_uuid(), 'demo.work', 'later', 'sync', 5, CASE WHEN n <= 5 THEN 'pending' ELSE 'scheduled' END, 'null', 60, 3,
          now() + n * interval '1 second'
        FROM generate_series(1, :planned) AS n"""),
        {"planned": 10 * RUNNING},
    )
    for statement in (backlog._PARKED, backlog._OLDEST_PARKED):
        assert indexes(deep, statement, cap=RUNNING) == {"ix_tasks_due"}
    assert [(row.type, row.queue, row.n) for row in backlog.parked(deep)] == [("demo.work", "later", 5)]
    savepoint.rollback()


def test_a_tasks_place_is_counted_from_the_line_and_no_further_than_asked(deep: Connection) -> None:
    last = deep.execute(text("SELECT max(id::text)::uuid FROM tasks WHERE in_line AND priority = 5")).scalar()
    for priority, id_ in ((5, last), (9, last), (0, last)):
        values = {"queue": "default", "lane": "sync", "priority": priority, "id": id_, "limit": RUNNING, "namespace": "default"}
        assert indexes(deep, place._AHEAD, **values) == {"ix_tasks_line"}


def test_promote_and_expire_read_what_is_due(deep: Connection) -> None:
    assert indexes(deep, lifecycle._PROMOTE, limit=1000) >= {"ix_tasks_due"}
    assert indexes(deep, lifecycle._EXPIRE, limit=1000) >= {"ix_tasks_expiry"}


def test_finish_reads_its_tasks_alone(deep: Connection) -> None:
    id_ = deep.execute(text("SELECT id FROM tasks WHERE in_line AND status = 'running' LIMIT 1")).scalar()
    rows = f'[{{"id": "{id_}", "fence": 1, "outcome": "succeeded", "result": "1", "delay": 0}}]'
    assert indexes(deep, lifecycle._FINISH, rows=rows, max_lost=3) == {"pk_tasks"}


def test_deliveries_that_are_due_are_found_by_their_index(shared_engine: Engine) -> None:
    with shared_engine.connect() as connection:
        connection.execute(text("INSERT INTO events (task_id, namespace, type, attempt) VALUES (gen_random_uuid(), 'default', 'task.failed', 1)"))
        connection.execute(
            text("""
            INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, status, next_try_at, delivered_at)
            SELECT e.id, 'default', e.task_id, 'r', 'log', CASE WHEN n > 100 THEN 'delivered' ELSE 'pending' END,
              CASE WHEN n <= 100 THEN now() + interval '1 hour' END, CASE WHEN n > 100 THEN now() END
            FROM events e, generate_series(1, 20000) AS n""")
        )
        connection.execute(text("ANALYZE deliveries"))
        assert "ix_deliveries_due" in indexes(connection, deliveries._DISPATCH, limit=200, lease=30.0, max_attempts=8, turn=deliveries.TURN)
        connection.rollback()


def test_a_list_of_a_tasks_children_reads_their_index(deep: Connection) -> None:
    parent = uuid4()
    deep.execute(text("UPDATE tasks SET parent_id = :parent WHERE id IN (SELECT id FROM tasks WHERE in_line ORDER BY id LIMIT 100)"), {"parent": parent})
    sent: list[tuple[str, Any]] = []

    def keep(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    event.listen(deep.engine, "before_cursor_execute", keep)
    page = queries.list_tasks(deep, "default", queries.TaskFilters(parent_id=parent), 50)
    event.remove(deep.engine, "before_cursor_execute", keep)
    assert len(page.items) == 50
    [(statement, parameters)] = sent
    plan = deep.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    assert {node["Index Name"] for node in nodes(plan[0]["Plan"]) if "Index Name" in node} == {"ix_tasks_parent"}


def test_a_run_reads_no_whole_table_however_small_it_is(database_url: str) -> None:
    """A plan that does is kept until the next ANALYZE, however much the table has grown until then."""
    engine = sync_engine(DatabaseSettings(url=SecretStr(database_url)), role="test")
    life = Life(engine)
    worker = life.worker()
    for _ in range(10):
        life.end(life.running(worker), "succeeded")
    with engine.begin() as connection:
        task = new()
        lifecycle.submit(connection, [task])
        before = scans(connection)
        lifecycle.dispatch(connection, "default", "sync", 10, 30)
        (claimed,) = lifecycle.claim(connection, worker, "default", "sync", [task.id], TYPES, PARK_DELAY)
        lifecycle.progress(connection, {(task.id, claimed["fence"]): {"fraction": 0.5}})
        assert lifecycle.finish(connection, [Finished(task.id, claimed["fence"], "succeeded")], 3)
        assert scans(connection) == before
    engine.dispose()


def scans(connection: Connection) -> int:
    """How often this transaction has read the whole table."""
    return int(connection.execute(text("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'tasks'")).scalar_one())
