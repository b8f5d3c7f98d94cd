"""Each verb meets a row that another transaction holds and leaves as it is, changes or moves: no other row of the statement is lost.

A statement that has to wait for one row is the dangerous one: PostgreSQL re-checks that row with a plan of its own (EvalPlanQual).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from taskyard import deliveries, lifecycle
from taskyard.records import Finished

from .life import MAX_LOST, PARK_DELAY, STALE, TYPES, Life, begin

Verb = Callable[[Connection, Sequence[UUID]], Sequence[UUID]]
COUNT = 4

# What another transaction does meanwhile to the rows that it holds.
TOUCH = "UPDATE tasks SET awaited = true WHERE id = :id"
HOLD = "UPDATE tasks SET status = 'held', queued_at = NULL, version = version + 1 WHERE id = :id"
END = "UPDATE tasks SET status = 'cancelled', finished_at = now(), next_run_at = NULL, version = version + 1 WHERE id = :id"
REVIVE = "UPDATE tasks SET status = 'pending', finished_at = NULL, version = version + 1 WHERE id = :id"
LOCK = "SELECT id FROM tasks WHERE id = :id FOR UPDATE"


def ids(rows: Sequence[Any]) -> list[UUID]:
    return sorted(row["id"] for row in rows)


def claiming(worker: UUID) -> Verb:
    def claim(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
        rows = lifecycle.claim(connection, worker, "default", "sync", list(tasks), TYPES, PARK_DELAY)
        assert {row["status"] for row in rows} <= {"running"}
        return ids(rows)

    return claim


def finish(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    return ids(lifecycle.finish(connection, [Finished(task, 1, "succeeded") for task in tasks], MAX_LOST))


def give_back(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    return ids(lifecycle.finish(connection, [Finished(task, 1, "returned") for task in tasks], MAX_LOST))


def progress(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    return sorted(lifecycle.progress(connection, {(task, 1): {"fraction": 0.5} for task in tasks}))


def reap(connection: Connection, _: Sequence[UUID]) -> list[UUID]:
    return ids(lifecycle.reap(connection, 15, MAX_LOST))


def withdraw(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    withdrawn = lifecycle.withdraw(connection, tasks)
    rows = connection.execute(text("SELECT id FROM tasks WHERE status = 'pending' AND id = ANY (:ids)"), {"ids": list(tasks)}).scalars().all()
    assert len(rows) == withdrawn
    return sorted(rows)


def people(verb: str) -> Verb:
    return lambda connection, tasks: ids(lifecycle.move_many(connection, verb, "default", tasks))


def waiting_verbs(life: Life) -> dict[str, tuple[str, Verb, str]]:
    """Verbs that wait for a locked row: the status that they leave, themselves, and what takes a row away from them."""
    worker, silent = life.worker(), life.worker("silent", silent=60)
    return {
        "claim": ("queued", claiming(worker), HOLD),
        "withdraw": ("queued", withdraw, HOLD),
        "finish": ("running", finish, END),
        "finish: returned": ("running", give_back, END),
        "progress": ("running", progress, END),
        "reap": (f"running {silent}", reap, END),
        "cancel": ("pending", people("cancel"), END),
        "hold": ("queued", people("hold"), END),
        "release": ("held", people("release"), END),
        "retry": ("failed", people("retry"), REVIVE),
    }


WAITING = ("claim", "withdraw", "finish", "finish: returned", "progress", "reap", "cancel", "hold", "release", "retry")


def made(life: Life, status: str) -> list[UUID]:
    kind, _, worker = status.partition(" ")
    return sorted(life.running(UUID(worker)) if worker else life.in_status(kind) for _ in range(COUNT))


@pytest.mark.parametrize("held", [[0], [1, 2], list(range(COUNT))], ids=["first", "middle", "all"])
@pytest.mark.parametrize("meanwhile", ["nothing", "a change", "a move"])
@pytest.mark.parametrize("name", WAITING)
def test_a_verb_that_waits_for_a_row_loses_no_other(life: Life, name: str, meanwhile: str, held: list[int]) -> None:
    status, verb, moves = waiting_verbs(life)[name]
    tasks = made(life, status)
    locked = [tasks[index] for index in held]
    with begin(life.engine) as other, begin(life.engine) as mine, ThreadPoolExecutor(1) as pool:
        for task in locked:
            other.execute(text({"nothing": LOCK, "a change": TOUCH, "a move": moves}[meanwhile]), {"id": task})
        answer = pool.submit(verb, mine, tasks)
        life.await_lock(answer)
        other.commit()
        assert answer.result() == (sorted(set(tasks) - set(locked)) if meanwhile == "a move" else tasks)
        mine.commit()


def dispatch(connection: Connection, _: Sequence[UUID]) -> list[UUID]:
    return sorted(hint.id for hint in lifecycle.dispatch(connection, "default", "sync", 100, STALE).hints)


def expire(connection: Connection, _: Sequence[UUID]) -> list[UUID]:
    return ids(lifecycle.expire(connection))


def promote(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    lifecycle.promote(connection)
    return sorted(connection.execute(text("SELECT id FROM tasks WHERE status = 'pending' AND id = ANY (:ids)"), {"ids": list(tasks)}).scalars())


def await_ends(connection: Connection, tasks: Sequence[UUID]) -> list[UUID]:
    rows = lifecycle.await_ends(connection, [("default", task) for task in tasks])
    assert ids(list(rows.values())) == sorted(tasks), "every task that is there is in the answer"
    return sorted(row["id"] for row in rows.values() if row["awaited"])


SKIPPING: dict[str, Verb] = {"dispatch": dispatch, "expire": expire, "promote": promote, "await": await_ends}


@pytest.mark.parametrize("held", [[0], [1, 2], list(range(COUNT))], ids=["first", "middle", "all"])
@pytest.mark.parametrize("name", SKIPPING)
def test_a_verb_that_passes_over_a_locked_row_moves_all_others_and_that_one_later(life: Life, name: str, held: list[int]) -> None:
    planned: dict[str, dict[str, Any]] = {"promote": {"delay": 3600.0}, "expire": {"expires_at": "2999-01-01T00:00:00Z"}}
    tasks = sorted(life.submit(**planned.get(name, {})) for _ in range(COUNT))
    for task in tasks:
        if column := {"promote": "next_run_at", "expire": "expires_at"}.get(name):
            life.pass_time(task, column)
    locked = [tasks[index] for index in held]
    with begin(life.engine) as other:
        other.execute(text("SELECT id FROM tasks WHERE id = ANY (:ids) FOR UPDATE"), {"ids": locked})
        with life.engine.begin() as connection:
            assert SKIPPING[name](connection, tasks) == sorted(set(tasks) - set(locked))
    with life.engine.begin() as connection:
        assert set(SKIPPING[name](connection, tasks)) >= set(locked)


def test_a_dispatch_says_that_it_passed_over_a_ready_task_and_only_then(life: Life) -> None:
    def dispatched(room: int = 100) -> tuple[int, bool]:
        with life.engine.begin() as connection:
            found = lifecycle.dispatch(connection, "default", "sync", room, STALE)
            return len(found.hints), found.skipped

    assert dispatched() == (0, False)
    first = life.submit()
    with begin(life.engine) as other:
        other.execute(text(TOUCH), {"id": first})
        assert dispatched() == (0, True)
        life.submit()
        assert dispatched() == (1, True)
        life.submit()
        assert dispatched(room=1) == (1, False), "its room is used up: the dispatcher looks again anyway"
        assert dispatched() == (0, True)
        other.commit()
    assert dispatched() == (1, False)
    with begin(life.engine) as other:
        other.execute(text(TOUCH), {"id": first})
        assert dispatched() == (0, False), "what is queued is not ready, whoever holds its row"


@pytest.mark.parametrize("meanwhile", [LOCK, TOUCH, HOLD])
def test_a_claim_that_waits_for_its_hint_runs_the_more_urgent_task_all_the_same(life: Life, meanwhile: str) -> None:
    worker, hinted = life.worker(), life.queued(priority=1)
    urgent = life.submit(priority=9)
    with begin(life.engine) as other, begin(life.engine) as mine, ThreadPoolExecutor(1) as pool:
        other.execute(text(meanwhile), {"id": hinted})
        answer = pool.submit(lifecycle.claim, mine, worker, "default", "sync", [hinted], TYPES, PARK_DELAY)
        life.await_lock(answer)
        other.commit()
        rows = {row["id"]: row["status"] for row in answer.result()}
        mine.commit()
    # A hint whose task was taken away is worth nothing.
    assert rows == ({} if meanwhile is HOLD else {urgent: "running", hinted: "pending"})


def test_a_task_that_comes_back_while_its_claim_waits_is_claimed_once(life: Life) -> None:
    """Held, released and dispatched anew while the claim waits for its row: still one run."""
    worker, task, other = life.worker(), life.queued(), life.queued()
    with begin(life.engine) as person, begin(life.engine) as mine, ThreadPoolExecutor(1) as pool:
        lifecycle.hold(person, "default", task)
        answer = pool.submit(lifecycle.claim, mine, worker, "default", "sync", [task, other], TYPES, PARK_DELAY)
        life.await_lock(answer)
        lifecycle.release(person, "default", task)
        lifecycle.dispatch(person, "default", "sync", 10, STALE)
        person.commit()
        assert ids(answer.result()) == sorted([task, other])
        mine.commit()
    assert [life.row(id_)["fence"] for id_ in (task, other)] == [1, 1]


# --- deliveries ---


def deliveries_in(life: Life, status: str) -> list[int]:
    """Deliveries of one event each, in a status, at their first try."""
    next_try = "NULL" if status in deliveries.ENDED else "now() + interval '1 hour'"
    delivered = "now()" if status == "delivered" else "NULL"
    made = text(
        f"""
        WITH e AS (
          INSERT INTO events (task_id, namespace, type, attempt)
          SELECT gen_random_uuid(), 'default', 'task.failed', 1 FROM generate_series(1, {COUNT}) RETURNING id, task_id
        )
        INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, status, attempt, fence, next_try_at, delivered_at)
        SELECT id, 'default', task_id, 'r', 'log', :status, 1, 1, {next_try}, {delivered} FROM e RETURNING id"""
    )
    with life.engine.begin() as connection:
        return sorted(connection.execute(made, {"status": status}).scalars())


def claim_deliveries(connection: Connection, wanted: Sequence[int]) -> list[int]:
    return sorted(row["id"] for row in deliveries.claim(connection, wanted, 30.0))


def finish_deliveries(connection: Connection, wanted: Sequence[int]) -> list[int]:
    return sorted(row["id"] for row in deliveries.finish(connection, [deliveries.Tried(id_, 1, "delivered") for id_ in wanted], 3))


def _pending(connection: Connection, wanted: Sequence[int]) -> list[int]:
    statement = text("SELECT id FROM deliveries WHERE status = 'pending' AND id = ANY (:ids) ORDER BY id")
    return list(connection.execute(statement, {"ids": list(wanted)}).scalars())


def withdraw_deliveries(connection: Connection, wanted: Sequence[int]) -> list[int]:
    deliveries.withdraw(connection, wanted)
    return _pending(connection, wanted)


def redeliver(connection: Connection, wanted: Sequence[int]) -> list[int]:
    count = deliveries.redeliver_many(connection, "default", wanted)
    moved = _pending(connection, wanted)
    assert len(moved) == count
    return moved


DELIVERIES: dict[str, tuple[str, Callable[[Connection, Sequence[int]], list[int]]]] = {
    "claim": ("queued", claim_deliveries),
    "finish": ("sending", finish_deliveries),
    "withdraw": ("queued", withdraw_deliveries),
    "redeliver": ("delivered", redeliver),
}


@pytest.mark.parametrize("held", [[0], [1, 2], list(range(COUNT))], ids=["first", "middle", "all"])
@pytest.mark.parametrize("moves", [False, True], ids=["stays", "moves"])
@pytest.mark.parametrize("name", DELIVERIES)
def test_a_deliverys_verb_that_waits_for_a_row_loses_no_other(life: Life, name: str, moves: bool, held: list[int]) -> None:
    status, verb = DELIVERIES[name]
    wanted = deliveries_in(life, status)
    locked = [wanted[index] for index in held]
    elsewhere = "status = 'queued', next_try_at = now(), delivered_at = NULL" if status in ("sending", "delivered") else "status = 'dead', next_try_at = NULL"
    with begin(life.engine) as other, begin(life.engine) as mine, ThreadPoolExecutor(1) as pool:
        change = elsewhere if moves else "updated_at = now()"
        other.execute(text(f"UPDATE deliveries SET {change} WHERE id = ANY (:ids)"), {"ids": locked})
        answer = pool.submit(verb, mine, wanted)
        life.await_lock(answer)
        other.commit()
        assert answer.result() == (sorted(set(wanted) - set(locked)) if moves else wanted)
        mine.commit()


def test_a_delivery_that_is_made_to_wait_while_the_one_before_it_ends_is_due_at_once(life: Life) -> None:
    """The dispatch still sees the earlier try; the finish still sees the later delivery as due. Neither may win over the other."""
    first, second = deliveries_in(life, "sending")[:2]
    life.execute("UPDATE deliveries SET task_id = (SELECT task_id FROM deliveries WHERE id = :first) WHERE id = :second", first=first, second=second)
    life.execute("UPDATE deliveries SET status = 'pending', attempt = 0, fence = 0, next_try_at = now() WHERE id = :second", second=second)
    with begin(life.engine) as dispatching, begin(life.engine) as finishing, ThreadPoolExecutor(1) as pool:
        (due,) = deliveries.dispatch(dispatching, 10, 30.0, 3)
        assert (due.id, due.waits) == (second, True)
        ended = pool.submit(finish_deliveries, finishing, [first])
        life.await_lock(ended)
        dispatching.commit()
        assert ended.result() == [first]
        finishing.commit()
    assert life.column("SELECT next_try_at <= now() FROM deliveries WHERE id = :id", id=second) == [True]
