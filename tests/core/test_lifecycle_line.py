"""The dispatcher's verbs: promote, dispatch, withdraw, expire, reap."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from taskyard import lifecycle

from .life import MAX_LOST, Life, begin, counts


def promote(life: Life) -> list[tuple[str, str]]:
    with life.engine.begin() as connection:
        return lifecycle.promote(connection)


def expire(life: Life) -> list[UUID]:
    with life.engine.begin() as connection:
        return [row["id"] for row in lifecycle.expire(connection)]


def withdraw(life: Life, *tasks: UUID) -> int:
    with life.engine.begin() as connection:
        return lifecycle.withdraw(connection, tasks)


def test_a_due_task_comes_in_line_once(life: Life) -> None:
    task, later = life.submit(delay=3600.0, queue="io", lane="async"), life.submit(delay=3600.0)
    assert promote(life) == []
    life.pass_time(task, "next_run_at")
    assert promote(life) == [("io", "async")]
    assert promote(life) == []
    row = life.row(task)
    assert (row["status"], row["in_line"], row["next_run_at"]) == ("pending", True, None)
    assert life.status(later) == "scheduled"


def test_the_most_urgent_and_among_them_the_oldest_are_dispatched_first(life: Life) -> None:
    tasks = [life.submit(priority=priority) for priority in (0, 5, 9, 5, 9)]
    hints = life.dispatch(room=4)
    assert [hint.id for hint in hints] == [tasks[2], tasks[4], tasks[1], tasks[3]]
    assert [(hint.type, hint.priority, hint.swept) for hint in hints[:1]] == [("demo.work", 9, False)]
    assert life.status(tasks[0]) == "pending"
    assert life.row(tasks[2])["queued_at"] is not None


def test_a_dispatch_leaves_no_event_and_spends_nothing(life: Life) -> None:
    task = life.queued()
    assert life.event_types(task) == ["submitted"]
    assert counts(life.row(task)) == (0, 0, 0)


def test_other_lines_are_not_touched(life: Life) -> None:
    others = [life.submit(queue="io"), life.submit(lane="async"), life.in_status("scheduled"), life.in_status("held")]
    assert life.dispatch() == []
    assert [life.status(task) for task in others] == ["pending", "pending", "scheduled", "held"]


def test_a_paused_queue_is_not_dispatched(life: Life) -> None:
    task = life.submit()
    life.pause()
    assert life.dispatch() == []
    life.execute("UPDATE queues SET paused_at = NULL")
    assert [hint.id for hint in life.dispatch()] == [task]


def test_a_task_that_is_past_its_expiry_is_not_dispatched(life: Life) -> None:
    life.submit(expires_at="2001-01-01T00:00:00Z")
    assert life.dispatch() == []


def test_a_queued_task_is_sent_again_only_when_it_is_stale(life: Life) -> None:
    task = life.queued()
    assert life.dispatch() == []
    life.pass_time(task, "queued_at")
    (hint,) = life.dispatch(stale=30)
    assert (hint.id, hint.swept) == (task, True)
    assert life.dispatch(stale=30) == []
    life.pass_time(task, "queued_at")
    assert life.dispatch(stale=90) == []


def test_two_dispatchers_share_the_line_without_waiting(life: Life) -> None:
    tasks = [life.submit() for _ in range(4)]
    with begin(life.engine) as one, begin(life.engine) as two:
        first = lifecycle.dispatch(one, "default", "sync", 2, 30)
        second = lifecycle.dispatch(two, "default", "sync", 10, 30)
        one.commit()
        two.commit()
    assert [hint.id for hint in [*first.hints, *second.hints]] == tasks
    assert (first.skipped, second.skipped) == (False, True)


def test_what_could_not_be_published_goes_back_in_line(life: Life) -> None:
    queued, pending, running = life.queued(), life.in_status("held"), life.running()
    assert withdraw(life, queued, pending, running, uuid4()) == 1
    assert [life.status(task) for task in (queued, pending, running)] == ["pending", "held", "running"]
    assert life.row(queued)["queued_at"] is None
    assert life.event_types(queued) == ["submitted"]


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued", "held"])
def test_a_task_that_waited_too_long_expires(life: Life, status: str) -> None:
    task = life.in_status(status)
    assert expire(life) == []
    life.pass_time(task, "expires_at")
    assert expire(life) == [task]
    assert expire(life) == []
    row = life.row(task)
    assert (row["status"], row["ended"], row["next_run_at"]) == ("expired", "expired", None)
    assert row["finished_at"] is not None
    assert life.event_types(task).count("expired") == 1


@pytest.mark.parametrize("status", ["running", "succeeded", "failed", "cancelled"])
def test_a_task_that_has_run_does_not_expire(life: Life, status: str) -> None:
    task = life.in_status(status)
    life.pass_time(task, "expires_at")
    assert expire(life) == []
    assert life.status(task) == status


def test_a_silent_workers_task_goes_back_in_line_and_keeps_its_attempts(life: Life) -> None:
    dead, alive = life.worker("dead", silent=60), life.worker("alive")
    lost, kept = life.running(dead), life.running(alive)
    assert [(row["id"], row["status"]) for row in life.reap()] == [(lost, "pending")]
    row = life.row(lost)
    assert (counts(row), row["worker_id"], row["queued_at"]) == ((0, 1, 1), None, None)
    event = life.last_event(lost)
    assert (event["type"], event["attempt"]) == ("task.lost", 0)
    assert event["data"] == {"worker": "dead", "reason": "worker fell silent", "fence": 1, "lost": 1}
    assert life.status(kept) == "running"
    assert life.column("SELECT name FROM workers") == ["alive"]
    assert life.reap() == []


def test_a_task_that_loses_too_many_workers_fails(life: Life) -> None:
    task = life.submit()
    for lost in range(1, MAX_LOST + 2):
        life.run(task, life.worker(silent=60))
        (row,) = life.reap()
        assert (row["status"], life.row(task)["lost"]) == ("pending" if lost <= MAX_LOST else "failed", lost)
    row = life.row(task)
    assert (row["error"]["code"], counts(row)) == ("worker-lost", (1, 4, 4))
    assert row["finished_at"] is not None
    assert life.last_event(task)["data"]["error"]["code"] == "worker-lost"


def test_a_lost_task_that_was_asked_to_stop_is_cancelled(life: Life) -> None:
    task = life.running(life.worker(silent=60))
    life.person("cancel", task)
    life.reap()
    assert (life.status(task), counts(life.row(task)), life.event_types(task)[-1]) == ("cancelled", (1, 1, 1), "cancelled")


def test_a_stopping_worker_is_forgotten_unless_it_still_has_runs(life: Life) -> None:
    idle, busy = life.worker("idle"), life.worker("busy")
    life.running(busy)
    with life.engine.begin() as connection:
        lifecycle.unregister_worker(connection, idle)
        lifecycle.unregister_worker(connection, busy)
    assert life.column("SELECT name FROM workers") == ["busy"]


def test_a_beat_tells_a_worker_that_was_given_up(life: Life) -> None:
    worker = life.worker(silent=60)
    with life.engine.begin() as connection:
        assert lifecycle.beat(connection, worker)
    assert life.reap() == []
    life.execute("DELETE FROM workers")
    with life.engine.begin() as connection:
        assert not lifecycle.beat(connection, worker)
