"""Which live worker is called stuck: one with free slots, of which nothing was heard for long, while a task waits for it as long."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7
from sqlalchemy import Engine

from taskyard import gauges, lifecycle, readiness, workers
from taskyard.metrics import Tally
from taskyard.settings import DispatchSettings, Settings

from .life import Life

LIMIT = 60.0
SETTINGS = Settings(dispatch=DispatchSettings(sweep_after=LIMIT / workers.SWEEPS))


@pytest.fixture
def life(engine: Engine) -> Life:
    return Life(engine)


def _worker(life: Life, name: str = "w", idle: float | None = 100.0, busy: dict[str, int] | None = None, queues: tuple[str, ...] = ("default",)) -> UUID:
    worker = uuid7.uuid7()
    with life.engine.begin() as connection:
        lifecycle.register_worker(connection, worker, name, queues, {"sync": 2, "async": 10}, "here")
        assert lifecycle.beat(connection, worker, busy=busy, idle=idle)
    return worker


def _waiting(life: Life, seconds: float = 100.0, **fields: object) -> UUID:
    """A task that was ready so long ago, and was sent to the broker a moment ago: again, if it was sent before."""
    task = life.queued(**fields)
    life.execute("UPDATE tasks SET created_at = now() - :seconds * interval '1 second' WHERE id = :id", id=task, seconds=seconds)
    return task


def _stuck(life: Life) -> list[str]:
    with life.engine.connect() as connection:
        return [worker.name for worker in workers.live(connection, SETTINGS) if worker.stuck]


def test_a_worker_that_takes_nothing_although_a_task_waits_for_it_is_stuck_and_every_look_says_so(life: Life) -> None:
    _worker(life, "well", idle=1)
    _worker(life, "stuck")
    _waiting(life)
    assert _stuck(life) == ["stuck"]
    with life.engine.connect() as connection:
        parts = readiness.look(connection, SETTINGS, 0)
        samples = gauges.read(connection, SETTINGS, Tally())
    assert parts["workers"] == "1 of 2 claimed and ended nothing for 100 s, although tasks wait for their free slots"
    assert readiness.is_ready(parts), "tasks are accepted all the same"
    assert samples[gauges.STUCK.name, ()] == 1
    assert 100 <= samples[gauges.STUCK_SECONDS.name, ()] < 160


@pytest.mark.parametrize(
    ("worker", "task"),
    [
        ({"idle": LIMIT / 2}, {}),
        ({"idle": None, "name": "of the version before"}, {}),
        ({"busy": {"sync": 2}}, {}),
        ({"queues": ("other",)}, {}),
        ({}, {"seconds": LIMIT / 2}),
    ],
    ids=["progresses", "says nothing", "has no slot", "serves another queue", "the task has not waited"],
)
def test_a_worker_is_well_that(life: Life, worker: dict[str, object], task: dict[str, float]) -> None:
    made = _worker(life, **worker)  # type: ignore[arg-type]
    if worker.get("idle", 1) is None:
        life.execute("UPDATE workers SET progressed_at = NULL WHERE id = :id", id=made)
    _waiting(life, **task)
    assert _stuck(life) == []
    with life.engine.connect() as connection:
        samples = gauges.read(connection, SETTINGS, Tally())
    assert (samples[gauges.STUCK.name, ()], samples[gauges.STUCK_SECONDS.name, ()]) == (0, 0)


def test_slots_of_one_lane_are_none_of_another(life: Life) -> None:
    _worker(life, busy={"sync": 2})
    _waiting(life, lane="async")
    assert _stuck(life) == ["w"]


def test_tasks_that_wait_elsewhere_are_not_a_workers_fault(life: Life) -> None:
    _worker(life)
    pending = life.submit()
    life.execute("UPDATE tasks SET created_at = now() - interval '1 hour' WHERE id = :id", id=pending)
    assert _stuck(life) == [], "no dispatcher has sent it"
    _waiting(life)
    assert _stuck(life) == ["w"]
    life.pause()
    assert _stuck(life) == []


def test_a_silent_worker_is_lost_and_not_stuck(life: Life) -> None:
    life.execute("UPDATE workers SET beat_at = now() - interval '1 hour' WHERE id = :id", id=_worker(life))
    _waiting(life)
    assert _stuck(life) == []


def test_a_beat_tells_the_progress_and_the_taken_slots(life: Life) -> None:
    worker = _worker(life, idle=30, busy={"sync": 1, "async": 7})
    assert life.column("SELECT round(EXTRACT(epoch FROM beat_at - progressed_at)) FROM workers WHERE id = :id", id=worker) == [30]
    assert json.dumps(life.column("SELECT busy FROM workers")[0], sort_keys=True) == '{"async": 7, "sync": 1}'
    with life.engine.begin() as connection:
        assert lifecycle.beat(connection, worker)
    [kept] = life.column("SELECT EXTRACT(epoch FROM now() - progressed_at) FROM workers")
    assert kept >= 30, "a beat that does not tell changes nothing"
