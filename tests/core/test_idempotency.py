"""Idempotency keys in the database: written with their tasks, and forgotten when their time has passed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskyard import idempotency, lifecycle
from taskyard.errors import IdempotencyMismatch
from taskyard.idempotency import IdempotencyKey
from tests.stack import until

from .life import Life, begin, new
from .test_dispatcher import Yard
from .test_dispatcher import yard as yard


def key(name: str, body: Any = 1) -> IdempotencyKey:
    return IdempotencyKey("default", name, idempotency.fingerprint(body))


def test_a_key_is_written_with_its_tasks_or_not_at_all(life: Life) -> None:
    tasks = [new(), new()]
    with life.engine.begin() as connection:
        lifecycle.submit(connection, tasks, [key("k").row([task.id for task in tasks])])
    with begin(life.engine) as connection:
        lifecycle.submit(connection, [new()], [key("l").row([new().id])])
        connection.rollback()
    with life.engine.connect() as connection:
        made = idempotency.replay(connection, key("k"))
        assert made is not None
        assert [row["id"] for row in made] == [task.id for task in tasks]
        assert idempotency.replay(connection, key("l")) is None
        with pytest.raises(IdempotencyMismatch):
            idempotency.replay(connection, key("k", 2))


def test_only_the_tasks_of_a_used_key_are_left_out(life: Life) -> None:
    first, again, twin, fresh, plain = (new() for _ in range(5))
    with life.engine.begin() as connection:
        lifecycle.submit(connection, [first], [key("k").row([first.id])])
    with life.engine.begin() as connection:
        keys = [key("k").row([again.id]), key("l").row([fresh.id]), key("l").row([twin.id])]
        assert len(lifecycle.submit(connection, [again, plain, fresh, twin], keys)) == 2
    assert life.column("SELECT count(*) FROM tasks") == [3]
    assert life.column("SELECT count(*) FROM events") == [3]


def test_whoever_comes_second_waits_for_the_first_and_makes_nothing(life: Life) -> None:
    with begin(life.engine) as first, ThreadPoolExecutor(1) as pool:
        task = new()
        lifecycle.submit(first, [task], [key("k").row([task.id])])

        def second() -> int:
            other = new()
            with begin(life.engine) as connection, connection.begin():
                return len(lifecycle.submit(connection, [other], [key("k").row([other.id])]))

        waiting = pool.submit(second)
        life.await_lock(waiting)
        first.commit()
        assert waiting.result() == 0


def age(life: Life, count: int) -> None:
    life.execute(
        """INSERT INTO idempotency_keys (namespace, key, fingerprint, task_ids, created_at)
        SELECT 'default', n, '', '{}', now() - n * interval '1 hour' FROM generate_series(1, :count) AS n""",
        count=count,
    )


def test_the_oldest_keys_are_forgotten_a_batch_at_a_time(life: Life) -> None:
    age(life, 10)
    with life.engine.begin() as connection:
        assert idempotency.purge(connection, 5.5 * 3600, 3) == 3
    assert sorted(map(int, life.column("SELECT key FROM idempotency_keys"))) == [1, 2, 3, 4, 5, 6, 7]
    with life.engine.begin() as connection:
        assert idempotency.purge(connection, 5.5 * 3600, 3) == 2
    assert sorted(map(int, life.column("SELECT key FROM idempotency_keys"))) == [1, 2, 3, 4, 5]


def test_a_dispatcher_forgets_the_keys_of_yesterday(yard: Yard) -> None:
    age(yard.life, 30)
    with yard.dispatcher():
        until(lambda: yard.life.column("SELECT count(*) FROM idempotency_keys") == [23], 20, "the purge")
