"""Announcements gather while they are many, and not while they come one by one."""

from __future__ import annotations

import pytest

from taskyard.dispatch import gathering
from taskyard.dispatch.gathering import LONGEST, SHORTEST, Gathering


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(gathering, "time", made)
    return made


def test_looks_that_find_one_task_each_wait_for_nothing(clock: Clock) -> None:
    looks = Gathering()
    for _ in range(5):
        looks.wait()
        looks.found(1)
    assert clock.slept == [0.0] * 5


def test_looks_that_find_more_wait_longer_up_to_a_bound_and_less_again(clock: Clock) -> None:
    looks = Gathering()
    for tasks in [2] * 6 + [1] * 5:
        looks.wait()
        looks.found(tasks)
    longer = [0.0, SHORTEST, 2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST, LONGEST]
    assert clock.slept == pytest.approx([*longer, LONGEST, LONGEST / 2, LONGEST / 4, LONGEST / 8, LONGEST / 16])
    looks.wait()
    assert clock.slept[-1] == 0.0


def test_time_that_has_passed_since_the_last_look_is_not_waited_for_again(clock: Clock) -> None:
    looks = Gathering()
    looks.wait()
    looks.found(9)
    clock.now += SHORTEST / 2
    looks.wait()
    clock.now += LONGEST
    looks.wait()
    assert clock.slept == pytest.approx([0.0, SHORTEST / 2, 0.0])
