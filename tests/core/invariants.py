"""What must hold of a task's row and of its history: by the model, and by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .model import ENDED, Task, When

WAITING = ("scheduled", "pending", "queued")
#: What an event says of the status that its task has from then on. An event that is missing here says nothing of it.
LEADS_TO: dict[str, tuple[str, ...]] = {
    "task.submitted": WAITING,
    "task.started": ("running",),
    "task.retrying": WAITING,
    "task.lost": WAITING,
    "task.parked": WAITING,
    "task.held": ("held",),
    "task.released": WAITING,
    **{f"task.{status}": (status,) for status in ENDED},
}


def moment(value: datetime | None) -> When:
    """A timestamp in the model's words."""
    return None if value is None else "past" if value < datetime.now(UTC) else "ahead"


def check_row(row: Mapping[str, Any], task: Task) -> None:
    """The row is as the model has it."""
    columns = ("type", "queue", "priority", "max_attempts", "unique_key", "status", "attempt", "fence", "lost", "version")
    assert {name: row[name] for name in columns} == {name: getattr(task, name) for name in columns}
    assert tuple(row["tags"]) == task.tags
    assert row["worker_id"] == task.worker
    assert (moment(row["run_at"]), moment(row["next_run_at"]), moment(row["expires_at"])) == (task.run_at, task.next_run, task.expires)
    assert (row["queued_at"] is not None) is (task.queued is not None)
    assert (row["cancel_requested_at"] is not None) is task.asked
    assert (row["error"] or {}).get("code") == task.error
    assert (row["progress"] or {}).get("fraction") == task.progress
    assert row["result"] == ("done" if task.status == "succeeded" else None)
    told = [(type_, attempt, tuple(routes)) for type_, attempt, _, routes in row["history"]]
    assert told == [(said.type, said.attempt, said.routes) for said in task.history]


def check_history(row: Mapping[str, Any]) -> None:
    """Row and history explain each other, whatever the verbs were."""
    history: list[tuple[str, int, dict[str, Any], list[str]]] = row["history"]
    assert history[0][0] == "task.submitted"
    types = [event[0] for event in history]
    assert row["status"] in next(LEADS_TO[type_] for type_ in reversed(types) if type_ in LEADS_TO)
    assert row["fence"] == types.count("task.started"), "each claim adds one, and nothing else does"
    assert [event[2]["fence"] for event in history if event[0] == "task.started"] == list(range(1, row["fence"] + 1))
    assert (row["finished_at"] is not None) is (row["status"] in ENDED)
    _check_lives(history, row)


def _check_lives(history: list[tuple[str, int, dict[str, Any], list[str]]], row: Mapping[str, Any]) -> None:
    """A life begins with the submission or a person's retry. It ends at most once, and nothing happens after its end."""
    attempt = lost = 0
    running = ended = False
    for type_, named, data, _ in history:
        again = type_ == "task.retrying" and data.get("manual", False)
        assert again or not ended, "something happened after the end"
        assert not again or (ended and attempt >= 0)
        if again:
            attempt, lost, ended = 0, 0, False
        if type_ == "task.started":
            assert not running, "two runs at once"
            attempt, running = attempt + 1, True
        elif type_ in ("task.lost", "task.retrying", "task.released", *(f"task.{status}" for status in ENDED)):
            attempt -= type_ == "task.lost" or (type_ == "task.released" and running)
            lost = data.get("lost", lost)
            ended, running = type_.removeprefix("task.") in ENDED, False
        assert named == attempt, f"{type_} names attempt {named}, but its history says {attempt}"
    assert (row["attempt"], row["lost"]) == (attempt, lost)
    assert running is (row["status"] == "running")
    assert row["attempt"] <= row["max_attempts"]
