"""Counts: bounded, added up over processes, never twice, and at no statement of a task's own."""

from __future__ import annotations

import threading
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from taskyard import metrics
from taskyard.metrics import DELIVERIES, DELIVERY_OUTCOMES, FINISHED, OTHER, STALE, SUBMITTED, WAIT, Tally
from taskyard.plugins import load_plugins
from taskyard.tables import TERMINAL

from .life import Life


@pytest.fixture
def tally() -> Tally:
    return Tally(["demo.work"], ["default"], ["log"])


def flush(engine: Engine, tally: Tally) -> None:
    with engine.connect() as connection:
        metrics.flush(connection, tally)


def read(engine: Engine) -> dict[metrics.Key, float]:
    with engine.connect() as connection:
        return metrics.read(connection)


def test_what_a_client_may_name_freely_does_not_grow_the_label_sets(tally: Tally) -> None:
    for n in range(1000):
        tally.count(SUBMITTED, f"type{n}", f"queue{n}")
    tally.count(SUBMITTED, "demo.work", "default")
    assert tally.take() == {(SUBMITTED.name, (OTHER, OTHER)): 1000, (SUBMITTED.name, ("demo.work", "default")): 1}


def test_counts_of_all_processes_add_up(life: Life) -> None:
    for by in (2.0, 3.0):
        tally = Tally(["demo.work"], ["default"])
        tally.count(SUBMITTED, "demo.work", "default", by=by)
        tally.observe(WAIT, 0.02, "demo.work", "default")
        flush(life.engine, tally)
        assert tally.take() == {}
    labels = ("demo.work", "default")
    assert read(life.engine) == {(SUBMITTED.name, labels): 5, (f"{WAIT.name}_bucket", (*labels, "0.025")): 2, (f"{WAIT.name}_sum", labels): 0.04}


def test_an_observation_counts_in_one_bucket_and_a_clock_that_was_set_back_in_the_first(tally: Tally) -> None:
    for seconds in (-5.0, 0.005, 0.0051, 1e9):
        tally.observe(WAIT, seconds, "demo.work", "default")
    counted = tally.take()
    assert {key[1][-1]: value for key, value in counted.items() if key[0].endswith("_bucket")} == {"0.005": 2, "0.01": 1, "+Inf": 1}
    assert counted[f"{WAIT.name}_sum", ("demo.work", "default")] == pytest.approx(1e9 + 0.0101)


def test_flushes_of_many_processes_at_once_lose_nothing_and_do_not_deadlock(life: Life) -> None:
    def process(seed: int) -> None:
        for round_ in range(10):
            tally = Tally()
            verbs = [f"v{(n * (seed + 1)) % 7}" for n in range(7)]
            for verb in verbs:
                tally.count(STALE, verb)
            tally.count(STALE, f"own{seed}", by=round_ + 1)
            flush(life.engine, tally)

    threads = [threading.Thread(target=process, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(read(life.engine).values()) == 4 * 10 * 7 + 4 * 55


def test_a_flush_that_failed_before_its_commit_keeps_the_counts(life: Life, tally: Tally) -> None:
    tally.count(STALE, "finish")
    away = create_engine("postgresql+psycopg://postgres@127.0.0.1:1/none", connect_args={"connect_timeout": 1})
    metrics.flush_if_due(away, tally)
    life.execute("ALTER TABLE counters RENAME TO elsewhere")
    metrics.flush_if_due(life.engine, tally, last=True)
    life.execute("ALTER TABLE elsewhere RENAME TO counters")
    metrics.flush_if_due(life.engine, tally, last=True)
    assert read(life.engine) == {(STALE.name, ("finish",)): 1}


@pytest.mark.parametrize("arrives", [True, False])
def test_counts_whose_answer_is_lost_are_not_sent_twice(life: Life, tally: Tally, arrives: bool) -> None:
    own = create_engine(life.engine.url)

    def lose(*_: Any) -> None:
        raise OperationalError("INSERT", None, ConnectionError("lost"))

    tally.count(STALE, "finish")
    event.listen(own, "after_cursor_execute" if arrives else "before_cursor_execute", lose)
    metrics.flush_if_due(own, tally)
    own.dispose()
    metrics.flush_if_due(life.engine, tally, last=True)
    assert read(life.engine) == {(STALE.name, ("finish",)): 1 if arrives else 0}


def test_a_process_that_is_frozen_in_a_flush_holds_up_no_other(life: Life, tally: Tally) -> None:
    own = create_engine(life.engine.url)
    tally.count(STALE, "finish")
    other = Tally()
    other.count(STALE, "finish")
    # Frozen as soon as its statement was answered: the other one must not wait for anything that is still to come.
    event.listen(own, "after_cursor_execute", lambda *_: flush(life.engine, other), once=True)
    flush(own, tally)
    own.dispose()
    assert read(life.engine) == {(STALE.name, ("finish",)): 2}


def test_a_flush_learns_the_queues_that_workers_serve(life: Life, tally: Tally) -> None:
    assert tally.is_due(0), "a first flush is due even with nothing to say"
    life.execute("INSERT INTO workers (id, name, queues) VALUES (gen_random_uuid(), 'w', '{default,night}')")
    flush(life.engine, tally)
    tally.count(FINISHED, "demo.work", "night", "failed")
    assert list(tally.take()) == [(FINISHED.name, ("demo.work", "night", "failed"))]


def test_wait_is_from_ready_to_the_first_start_alone(life: Life) -> None:
    task = life.submit()
    life.execute("UPDATE tasks SET created_at = now() - interval '100 s'")
    first = life.run(task)
    assert 100 <= first["waited"] < 160
    life.end(task, "retry")
    assert life.run(task)["waited"] is None
    planned = life.submit(run_at="2001-01-01T00:00:00Z")
    assert life.run(planned)["waited"] < 60, "a time that had passed at the submission does not count"


def test_a_run_tells_how_long_it_was(life: Life) -> None:
    task = life.running()
    life.execute("UPDATE tasks SET started_at = now() - interval '30 s'")
    row = life.end(task, "succeeded", result="1")
    assert 30 <= row["ran"] < 90
    tally = Tally()
    metrics.count_ran(tally, [row])
    assert tally.take()[FINISHED.name, (OTHER, OTHER, "succeeded")] == 1


def test_what_can_be_foreseen_is_zero_after_the_first_flush_of_any_process_and_later_counts_add_to_it(life: Life) -> None:
    registry = load_plugins()
    for by in (0, 2):
        tally = Tally.of(registry)
        tally.count(DELIVERIES, "webhook", "dead", by=by)
        flush(life.engine, tally)
        counted = read(life.engine)
        assert counted[DELIVERIES.name, ("webhook", "dead")] == by
    assert {labels for name, labels in counted if name == DELIVERIES.name} == set(product(registry.notifiers, DELIVERY_OUTCOMES))
    for type_, handler in registry.handlers.items():
        assert {counted[FINISHED.name, (type_, handler.queue, status)] for status in TERMINAL} == {0}
        assert counted[WAIT.bucket_name, (type_, handler.queue, "+Inf")] == 0


def test_a_queue_that_a_worker_serves_is_zero_too_once_it_is_known_and_a_great_many_pairs_are_not(life: Life) -> None:
    tally = Tally.of(load_plugins())
    tally.take()
    tally.learn(["night"])
    assert tally.take()[FINISHED.name, ("demo.echo", "night", "failed")] == 0
    tally.learn(f"queue-{n}" for n in range(1000))
    assert len(tally.zeros()) < 2000
    assert (FINISHED.name, ("demo.echo", "default", "failed")) in tally.zeros()
    assert (FINISHED.name, ("demo.echo", "night", "failed")) not in tally.zeros()


def test_zeros_whose_answer_is_lost_are_sent_again(life: Life) -> None:
    own = create_engine(life.engine.url)

    def lose(*_: Any) -> None:
        raise OperationalError("INSERT", None, ConnectionError("lost"))

    tally = Tally.of(load_plugins())
    event.listen(own, "before_cursor_execute", lose)
    metrics.flush_if_due(own, tally)
    own.dispose()
    assert read(life.engine) == {}
    metrics.flush_if_due(life.engine, tally, last=True)
    assert read(life.engine)[DELIVERIES.name, ("webhook", "dead")] == 0
