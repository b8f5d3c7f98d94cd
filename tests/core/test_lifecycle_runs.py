"""The worker's verbs: a run is claimed once, ends once, and its fence keeps stale words out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError

from taskyard import lifecycle
from taskyard.records import Finished

from .life import MAX_LOST, Life, counts

WRONG = {"code": "wrong", "message": "it went wrong"}


def test_a_claim_starts_an_attempt_and_raises_the_fence(life: Life) -> None:
    worker = life.worker("w1")
    task = life.queued(payload=[1], timeout=7.0, metadata={"a": 1}, tags=("t",))
    (claimed,) = life.claim(worker, task)
    assert (claimed["status"], claimed["payload"], claimed["timeout"], claimed["metadata"], claimed["tags"]) == ("running", "[1]", 7.0, '{"a": 1}', ["t"])
    assert (claimed["attempt"], claimed["fence"], claimed["max_attempts"], claimed["unknown"]) == (1, 1, 3, False)
    row = life.row(task)
    assert (counts(row), row["worker_id"]) == ((1, 1, 0), worker)
    assert row["started_at"] >= row["queued_at"]
    event = life.last_event(task)
    assert (event["type"], event["attempt"], event["data"]) == ("task.started", 1, {"worker": "w1", "fence": 1})


def test_success_keeps_the_result_and_clears_what_went_wrong_before(life: Life) -> None:
    task = life.running()
    life.end(task, "retry", error=WRONG)
    life.run(task)
    life.end(task, "succeeded", result='{"size": 3}')
    row = life.row(task)
    assert (row["status"], row["result"], row["error"], row["worker_id"], counts(row)) == ("succeeded", {"size": 3}, None, None, (2, 2, 0))
    assert row["updated_at"] == row["finished_at"] >= row["started_at"]
    assert [(e["type"], e["attempt"], e["data"]) for e in life.events(task)[-1:]] == [("task.succeeded", 2, {})]


def test_a_failure_that_trying_again_would_not_help_ends_the_task(life: Life) -> None:
    task = life.running()
    life.end(task, "failed", error=WRONG)
    row = life.row(task)
    assert (row["status"], row["error"], row["result"]) == ("failed", WRONG, None)
    assert (life.event_types(task)[-1], life.last_event(task)["data"]) == ("failed", {"error": WRONG})


def test_a_retry_waits_its_delay(life: Life) -> None:
    task = life.running()
    life.end(task, "retry", error=WRONG, delay=100.0)
    row = life.row(task)
    assert (row["status"], row["error"], row["finished_at"], row["in_line"]) == ("scheduled", WRONG, None, False)
    assert row["next_run_at"] - row["updated_at"] == timedelta(seconds=100)
    assert (life.event_types(task)[-1], life.last_event(task)["data"]) == ("retrying", {"error": WRONG, "delay": 100})


def test_a_retry_without_delay_is_in_line_at_once(life: Life) -> None:
    task = life.running()
    life.end(task, "retry", error=WRONG)
    assert (life.status(task), counts(life.row(task))) == ("pending", (1, 1, 0))


def test_spent_attempts_end_as_failed_with_the_last_error(life: Life) -> None:
    task = life.submit(max_attempts=2)
    for _ in range(2):
        life.run(task)
        life.end(task, "retry", error=WRONG)
    assert (life.status(task), life.row(task)["error"], counts(life.row(task))) == ("failed", WRONG, (2, 2, 0))
    assert life.event_types(task) == ["submitted", "started", "retrying", "started", "failed"]


def test_a_task_that_is_handed_back_has_spent_no_attempt(life: Life) -> None:
    task = life.running()
    life.end(task, "returned")
    assert (life.status(task), counts(life.row(task))) == ("pending", (0, 1, 0))
    assert (life.event_types(task)[-1], life.last_event(task)["data"]) == ("released", {"reason": "worker stopping"})


def test_a_lost_process_spends_no_attempt_until_there_are_too_many(life: Life) -> None:
    task = life.submit(max_attempts=1)
    for lost in range(1, MAX_LOST + 1):
        life.run(task)
        life.end(task, "lost", error={"code": "killed", "message": "signal 9"})
        assert (life.status(task), counts(life.row(task))) == ("pending", (0, lost, lost))
    assert life.last_event(task)["data"] == {"error": {"code": "killed", "message": "signal 9"}, "fence": 3, "lost": 3, "reason": "signal 9"}
    life.run(task)
    life.end(task, "lost", error={"code": "killed", "message": "signal 9"})
    assert (life.status(task), life.row(task)["error"]) == ("failed", {"code": "worker-lost", "message": "signal 9"})
    assert life.last_event(task)["data"]["error"]["code"] == "worker-lost"


def test_a_task_that_was_lost_too_often_always_has_an_error(life: Life) -> None:
    task = life.running()
    life.execute("UPDATE tasks SET lost = :lost", lost=MAX_LOST)
    life.end(task, "lost")
    assert life.row(task)["error"]["code"] == "worker-lost"
    assert life.row(task)["error"]["message"]


def test_success_and_failure_beat_a_cancel_that_waits(life: Life) -> None:
    for outcome in ("succeeded", "failed"):
        task = life.running()
        life.person("cancel", task)
        life.end(task, outcome, error=WRONG if outcome == "failed" else None)
        assert life.status(task) == outcome


@pytest.mark.parametrize("outcome", ["retry", "returned", "lost", "cancelled"])
def test_what_would_run_again_after_a_cancel_is_cancelled(life: Life, outcome: str) -> None:
    task = life.running()
    life.person("cancel", task)
    life.end(task, outcome, delay=10.0 if outcome == "retry" else 0.0)
    row = life.row(task)
    assert (row["status"], row["next_run_at"], row["attempt"]) == ("cancelled", None, 1)
    assert life.event_types(task) == ["submitted", "started", "cancel_requested", "cancelled"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "retry", "cancelled", "lost", "returned"])
def test_a_stale_fence_moves_nothing(life: Life, outcome: Any) -> None:
    task = life.running(life.worker(silent=60))
    stale = life.finished(task, outcome)
    life.reap()
    life.run(task)
    before = life.row(task)
    for wrong in (stale, Finished(task, 99, outcome), Finished(uuid4(), 1, outcome)):
        assert life.finish(wrong) == []
    assert life.row(task) == before
    assert life.event_types(task) == ["submitted", "started", "lost", "started"]


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued", "held", "succeeded", "failed", "cancelled", "expired"])
def test_only_a_running_task_is_finished(life: Life, status: str) -> None:
    task = life.in_status(status)
    assert life.finish(life.finished(task, "succeeded")) == []
    assert life.status(task) == status


def test_a_run_ends_once(life: Life) -> None:
    task = life.running()
    said = life.finished(task, "succeeded")
    assert len(life.finish(said, said)) == 1
    assert life.finish(said) == []
    assert life.event_types(task).count("succeeded") == 1


def test_many_ends_share_a_statement(life: Life) -> None:
    ended, failed = life.running(), life.running()
    life.finish(life.finished(ended, "succeeded", result="1"), Finished(failed, 7, "failed"), life.finished(failed, "failed", error=WRONG))
    assert [life.status(task) for task in (ended, failed)] == ["succeeded", "failed"]


def test_a_result_that_is_no_json_is_refused_as_a_whole(life: Life) -> None:
    task = life.running()
    with pytest.raises(DBAPIError):
        life.end(task, "succeeded", result="{")
    assert life.status(task) == "running"


def test_progress_is_the_present_runs_and_gone_at_the_next(life: Life) -> None:
    task = life.running()
    said = {"fraction": 0.5, "message": "half"}
    with life.engine.begin() as connection:
        assert lifecycle.progress(connection, {(task, 1): said, (task, 2): {"fraction": 1}, (uuid4(), 1): {}}) == [task]
    assert life.row(task)["progress"] == said
    assert (life.event_types(task)[-1], life.last_event(task)["data"]) == ("progress", said)
    life.end(task, "retry", error=WRONG)
    with life.engine.begin() as connection:
        assert lifecycle.progress(connection, {(task, 1): {"fraction": 1}}) == []
    life.run(task)
    assert life.row(task)["progress"] is None


def test_a_worker_finds_the_claims_that_it_never_heard_of(life: Life) -> None:
    worker = life.worker()
    known, stray, foreign, again = life.running(worker), life.running(worker), life.running(), life.running(worker)
    life.end(again, "returned")
    life.run(again, worker)
    with life.engine.begin() as connection:
        # It knows of a run of the last one, and not of the present one.
        found = lifecycle.strays(connection, worker, {known: 1, again: 1})
        assert {(one.id, one.fence, one.outcome) for one in found} == {(stray, 1, "returned"), (again, 2, "returned")}
        lifecycle.finish(connection, found, MAX_LOST)
    assert [life.status(task) for task in (known, stray, foreign, again)] == ["running", "pending", "running", "pending"]


def test_a_worker_hears_which_of_its_runs_were_asked_to_stop(life: Life) -> None:
    asked, other, foreign = life.running(), life.running(), life.running()
    life.person("cancel", asked)
    life.person("cancel", foreign)
    with life.engine.begin() as connection:
        assert lifecycle.cancel_requests(connection, [asked, other, uuid4()]) == [asked]
