"""The verbs of people: cancel, hold, release, retry. (update has a file of its own.)"""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Connection, make_url

from taskyard import lifecycle
from taskyard.errors import IllegalTransition, NotFound, UniqueConflict

from .life import Life, begin, counts


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued", "held"])
def test_a_task_that_waits_is_cancelled_at_once(life: Life, status: str) -> None:
    task = life.in_status(status)
    answer = life.person("cancel", task)
    row = life.row(task)
    assert (answer["status"], row["status"], row["next_run_at"], row["in_line"]) == ("cancelled", "cancelled", None, False)
    assert row["finished_at"] is not None
    assert life.event_types(task)[-1] == "cancelled"


def test_a_task_that_runs_is_asked_first_and_once(life: Life) -> None:
    task = life.running()
    first = life.person("cancel", task)
    again = life.person("cancel", task)
    assert (first["status"], first["finished_at"]) == ("running", None)
    assert first["cancel_requested_at"] == again["cancel_requested_at"] is not None
    assert life.event_types(task) == ["submitted", "started", "cancel_requested"]


def test_workers_are_told_of_a_cancel_when_it_is_committed(life: Life) -> None:
    running, waiting = life.running(), life.submit()
    url = make_url(life.engine.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN taskyard_cancel")
        life.person("cancel", waiting)
        life.person("cancel", running)
        life.person("cancel", running)
        listener.execute("SELECT 1")
        assert [note.payload for note in listener.notifies(timeout=0.2)] == [str(running)]


@pytest.mark.parametrize("status", ["scheduled", "pending", "queued"])
def test_a_held_task_is_out_of_line(life: Life, status: str) -> None:
    task = life.in_status(status)
    life.person("hold", task)
    row = life.row(task)
    assert (row["status"], row["in_line"], row["next_run_at"], row["queued_at"]) == ("held", False, None, None)
    assert life.event_types(task)[-1] == "held"
    assert life.claim(life.worker(), task) == []


def test_a_released_task_is_back_in_line_or_on_its_schedule(life: Life) -> None:
    plain, planned, past = life.submit(), life.submit(delay=3600.0), life.submit(delay=3600.0)
    for task in (plain, planned, past):
        life.person("hold", task)
    life.pass_time(past, "run_at")
    for task in (plain, planned, past):
        life.person("release", task)
        assert life.event_types(task) == ["submitted", "held", "released"]
    assert [life.status(task) for task in (plain, planned, past)] == ["pending", "scheduled", "pending"]
    assert life.row(planned)["next_run_at"] == life.row(planned)["run_at"]


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_persons_retry_starts_afresh_but_the_fence_goes_on(life: Life, status: str) -> None:
    task = life.in_status(status)
    before = life.row(task)
    life.person("retry", task)
    row = life.row(task)
    assert (row["status"], row["in_line"], counts(row)) == ("pending", True, (0, before["fence"], 0))
    assert [row[name] for name in ("result", "error", "progress", "finished_at", "ended", "cancel_requested_at", "expires_at")] == [None] * 7
    event = life.last_event(task)
    assert (event["type"], event["attempt"], event["data"]) == ("task.retrying", 0, {"manual": True})
    assert life.run(task)["fence"] == before["fence"] + 1


def test_a_retried_task_has_all_its_attempts_again(life: Life) -> None:
    task = life.submit(max_attempts=1)
    for fence in (1, 2):
        assert (claimed := life.run(task))["attempt"] == 1
        assert claimed["fence"] == fence
        life.end(task, "retry")
        assert life.status(task) == "failed"
        life.person("retry", task)


def test_a_cancelled_run_can_be_retried_and_is_not_cancelled_again(life: Life) -> None:
    task = life.running()
    life.person("cancel", task)
    life.end(task, "cancelled")
    life.person("retry", task)
    life.run(task)
    life.end(task, "retry")
    assert life.status(task) == "pending"


def test_an_expiry_that_is_still_ahead_survives_a_retry(life: Life) -> None:
    task = life.submit(expires_at="2999-01-01T00:00:00Z")
    life.person("cancel", task)
    life.person("retry", task)
    assert life.row(task)["expires_at"].year == 2999


def test_a_retry_is_refused_while_another_live_task_has_its_unique_key(life: Life) -> None:
    task = life.submit(unique_key="k")
    life.person("cancel", task)
    holder = life.submit(unique_key="k")
    with pytest.raises(UniqueConflict) as refused:
        life.person("retry", task)
    assert (refused.value.unique_key, refused.value.task_id) == ("k", str(holder))
    assert life.event_types(task) == ["submitted", "cancelled"]
    life.person("cancel", holder)
    assert life.person("retry", task)["status"] == "pending"


def test_a_retry_takes_a_key_whose_holder_ends_meanwhile(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    task = life.submit(unique_key="k")
    life.person("cancel", task)
    holder = life.submit(unique_key="k")
    look = lifecycle.live_with_unique_key

    def ends_before_the_look(connection: Connection, namespace: str, key: str) -> UUID | None:
        if life.status(holder) == "pending":
            life.person("cancel", holder)
        return look(connection, namespace, key)

    monkeypatch.setattr(lifecycle, "live_with_unique_key", ends_before_the_look)
    assert life.person("retry", task)["status"] == "pending"
    assert life.event_types(task) == ["submitted", "cancelled", "retrying"]


def test_a_refused_retry_leaves_its_transaction_usable(life: Life) -> None:
    task = life.submit(unique_key="k")
    life.person("cancel", task)
    life.submit(unique_key="k")
    with life.engine.begin() as connection:
        with pytest.raises(UniqueConflict):
            lifecycle.retry(connection, "default", task)
        assert lifecycle.live_with_unique_key(connection, "default", "k") is not None


@pytest.mark.parametrize("verb", lifecycle.PERSONAL_VERBS)
@pytest.mark.parametrize("status", ["pending", "cancelled"])
def test_a_foreign_task_is_not_there(life: Life, verb: str, status: str) -> None:
    task = life.in_status(status)
    arguments = [{"priority": 1}] if verb == "update" else []
    for id_, namespace in ((task, "team"), (uuid4(), "default")):
        with pytest.raises(NotFound):
            life.person(verb, id_, *arguments, namespace=namespace)
    assert life.status(task) == status


def refusals() -> list[tuple[str, str]]:
    return [
        (verb, status)
        for verb in lifecycle.PERSONAL_VERBS
        for status in ("scheduled", "pending", "queued", "running", "held", "succeeded", "failed", "cancelled", "expired")
        if status not in lifecycle.TRANSITIONS[verb]
    ]


@pytest.mark.parametrize(("verb", "status"), refusals())
def test_a_refusal_names_the_status_and_what_it_allows(life: Life, verb: str, status: str) -> None:
    task: UUID = life.in_status(status)
    before, events = life.row(task), life.event_types(task)
    with pytest.raises(IllegalTransition) as refused:
        life.person(verb, task, *([{"priority": 1}] if verb == "update" else []))
    assert (refused.value.verb, refused.value.status) == (verb, status)
    assert refused.value.allowed == lifecycle.allowed_verbs(status)
    assert verb not in refused.value.allowed
    assert (life.row(task), life.event_types(task)) == (before, events)


def test_a_wait_for_a_task_that_is_being_ended_is_not_noted_until_the_end_can_be_seen(life: Life) -> None:
    """A finish that holds the row has decided already whether to notify, so such a wait has to look again."""
    task = life.running()

    def look() -> tuple[str, bool]:
        with life.engine.begin() as connection:
            row = lifecycle.await_ends(connection, [("default", task)])["default", task]
            return row["status"], row["awaited"]

    with begin(life.engine) as finishing:
        lifecycle.finish(finishing, [life.finished(task, "succeeded")], 3)
        assert look() == ("running", False)
        finishing.commit()
    assert look() == ("succeeded", False)


@pytest.mark.parametrize("awaited", [True, False])
def test_only_the_end_of_a_task_that_somebody_waits_for_is_notified(life: Life, awaited: bool) -> None:
    tasks = [life.running(), life.submit(), life.submit(expires_at="2001-01-01T00:00:00Z"), life.submit()]
    with life.engine.connect() as listening:
        listening.exec_driver_sql("LISTEN taskyard_ended")
        listening.commit()
        if awaited:
            with life.engine.begin() as connection:
                versions = [life.row(task)["version"] for task in tasks]
                assert len(lifecycle.await_ends(connection, [("default", task) for task in tasks])) == 4
            assert [life.row(task)["version"] for task in tasks] == versions
        life.person("hold", tasks[3])
        life.end(tasks[0], "failed", error={"code": "x", "message": "y"})
        life.person("cancel", tasks[1])
        with life.engine.begin() as connection:
            lifecycle.expire(connection)
        driver = listening.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        heard = {note.payload for note in driver.notifies(timeout=10 if awaited else 0.2, stop_after=3)}
    assert heard == ({str(task) for task in tasks[:3]} if awaited else set())
