"""A task whose process died says what it died of."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from taskyard_worker.deaths import OutOfMemory, describe, kills
from tests.stack import Stack


@pytest.mark.parametrize(
    ("status", "signalled", "oom", "said"),
    [
        (9, True, True, "SIGKILL, out of memory"),
        (9, True, False, "SIGKILL"),
        (11, True, True, "SIGSEGV"),
        (3, False, True, "exit status 3"),
        (200, True, False, "signal 200"),
        (40, True, False, "signal 40"),
    ],
)
def test_a_death_has_its_signal_or_status_and_memory_counts_for_sigkill_alone(status: int, signalled: bool, oom: bool, said: str) -> None:
    assert describe(status, signalled=signalled, out_of_memory=oom) == said


def test_a_kill_for_lack_of_memory_is_noticed_once_and_only_if_it_is_counted() -> None:
    counts = iter([2, 2, 3, 3, None, 5])
    out = OutOfMemory(lambda: next(counts))
    assert [out.happened() for _ in range(5)] == [False, True, False, False, False]


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="Linux counts")
def test_this_system_tells_how_often_it_killed_or_that_it_does_not() -> None:
    count = kills()
    assert count is None or count >= 0


@pytest.mark.one_pair
def test_a_lost_task_names_the_signal(stack: Stack) -> None:
    task = stack.submit("t.die")
    row = stack.wait(task, seconds=60)
    assert row["error"]["code"] == "worker-lost"
    assert row["error"]["message"] == f"The process that ran this task died: {signal.SIGKILL.name}."
    assert "died: SIGKILL" in stack.value("SELECT data ->> 'reason' FROM events WHERE task_id = :id AND type = 'task.lost' LIMIT 1", id=task)
