"""What runs far past its timeout although its worker beats goes back in line; what its worker still has time for does not."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import Engine

from taskyard import lifecycle
from taskyard.dispatch import overdue
from taskyard.dispatch.overdue import PAGE_EVERY, ROUND_EVERY, Overdue
from taskyard.records import Finished
from taskyard.settings import DispatchSettings, Settings, WorkerSettings

from .life import MAX_LOST, Life, counts

SLACK = 120.0


@pytest.fixture
def life(engine: Engine) -> Life:
    return Life(engine)


class Clock:
    """Ours to move."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _since(life: Life, task: UUID, seconds: float) -> UUID:
    life.execute("UPDATE tasks SET started_at = now() - :seconds * interval '1 second' WHERE id = :id", id=task, seconds=seconds)
    return task


def _reaped(life: Life, rounds: Overdue) -> set[UUID]:
    with life.engine.begin() as connection:
        return {row["id"] for row in rounds.reap(connection)}


def _rounds(clock: Clock | None = None, max_lost: int = MAX_LOST) -> Overdue:
    return Overdue(Settings(dispatch=DispatchSettings(overdue_after=SLACK, max_lost=max_lost)), clock or Clock())


def test_a_task_that_runs_past_its_timeout_and_the_slack_goes_back_in_line_as_lost(life: Life) -> None:
    worker = life.worker("beats")
    late = _since(life, life.running(worker, timeout=10.0), 10 + SLACK + 1)
    rest = [_since(life, life.running(worker, timeout=10.0), 10 + SLACK - 60), _since(life, life.running(worker, timeout=1e12), 1e6)]
    assert _reaped(life, _rounds()) == {late}
    assert (life.status(late), counts(life.row(late))) == ("pending", (0, 1, 1))
    event = life.last_event(late)
    assert event["type"] == "task.lost"
    assert event["data"] == {"worker": "beats", "reason": "its worker had not ended it long after its timeout", "fence": 1, "lost": 1}
    assert [life.status(task) for task in rest] == ["running", "running"]
    # What its worker says of it later is refused.
    assert life.finish(Finished(late, 1, "succeeded", result="1")) == []


def test_one_that_was_lost_too_often_has_failed_and_one_that_was_to_be_cancelled_is(life: Life) -> None:
    spent, unwanted = (_since(life, life.running(timeout=10.0), 600) for _ in range(2))
    life.execute("UPDATE tasks SET lost = 1 WHERE id = :id", id=spent)
    life.person("cancel", unwanted)
    assert _reaped(life, _rounds(max_lost=1)) == {spent, unwanted}
    assert (life.status(spent), life.row(spent)["error"]["code"]) == ("failed", "worker-lost")
    assert life.status(unwanted) == "cancelled"


def test_no_setting_takes_a_run_away_while_its_worker_may_still_be_ending_it(life: Life) -> None:
    ending = _since(life, life.running(timeout=1.0), 1 + 100)
    late = _since(life, life.running(timeout=1.0), 1 + 200)
    settings = Settings(dispatch=DispatchSettings(overdue_after=1.0), worker=WorkerSettings(cancel_grace=60.0, kill_grace=20.0))
    assert _reaped(life, Overdue(settings, Clock())) == {late}
    assert life.status(ending) == "running"


def test_a_run_gets_the_time_that_the_machine_slept_and_one_that_began_afterwards_does_not(life: Life) -> None:
    """Ten minutes of sleep, with the dispatcher: neither the worker nor the run's timer went on meanwhile."""
    monotonic, since_boot = Clock(), Clock()
    rounds = Overdue(Settings(dispatch=DispatchSettings(overdue_after=SLACK, max_lost=MAX_LOST)), monotonic, since_boot)
    slept = _since(life, life.running(timeout=10.0), 10 + 600 + SLACK - 60)
    since_boot.now += 600
    assert _reaped(life, rounds) == set()
    for clock in (monotonic, since_boot):
        clock.now += ROUND_EVERY + 400
    began_later = _since(life, life.running(timeout=10.0), 10 + SLACK + 60)
    assert _reaped(life, rounds) == {began_later}
    for clock in (monotonic, since_boot):
        clock.now += ROUND_EVERY
    _since(life, slept, 10 + 600 + SLACK + 60)
    assert _reaped(life, rounds) == {slept}, "it has had its time"


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued", "held", "succeeded", "failed"])
def test_only_what_runs_can_be_overdue(life: Life, status: str) -> None:
    task = _since(life, life.in_status(status, timeout=1.0), 3600)
    assert _reaped(life, _rounds()) == set()
    assert life.status(task) == status


def test_one_whose_worker_records_its_end_at_this_moment_is_left_alone(life: Life) -> None:
    task = _since(life, life.running(timeout=1.0), 3600)
    with life.engine.begin() as connection:
        lifecycle.finish(connection, [life.finished(task, "succeeded", result="1")], MAX_LOST)
        assert _reaped(life, _rounds()) == set()
    assert life.status(task) == "succeeded"


def test_every_page_of_every_namespace_is_looked_at_and_then_all_begins_anew(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "PAGE", 3)
    late = {_since(life, life.running(namespace=namespace), 3600) for namespace in ("a", "b", "c") for _ in range(3)}
    for _ in range(5):
        life.submit(namespace="b")
    clock = Clock()
    rounds, found = _rounds(clock), list[UUID]()
    due = []
    for _ in range(5):
        found += _reaped(life, rounds)
        due.append(rounds.due)
        clock.now += PAGE_EVERY
        due.append(rounds.due)
    assert sorted(found) == sorted(late)
    assert due == [False, True] * 4 + [False, False], "the round is over with the fifth page"
    clock.now += ROUND_EVERY
    assert rounds.due
    again = _since(life, life.running(namespace="a"), 3600)
    first = _reaped(life, rounds)
    clock.now += PAGE_EVERY
    assert first | _reaped(life, rounds) == {again}
