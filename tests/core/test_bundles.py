"""How hints are packed into messages, and how full a line's window is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatch.bundles import AHEAD, BUDGET, MOST, WIDEST, Crew, crew_of, pack, reach
from taskyard.dispatch.window import Window
from taskyard.lifecycle import Hint

TYPES = {"quick": 0.001, "slow": 3.0, "half": BUDGET / 2, "alone": BUDGET}


def hints(*types: str) -> list[Hint]:
    return [Hint(UUID(int=n), type_, 5) for n, type_ in enumerate(types)]


def sizes(types: Sequence[str], takers: int = 1) -> list[int]:
    return [len(bundle) for bundle in pack(hints(*types), Crew(takers, TYPES))]


def test_a_short_line_travels_one_task_a_message() -> None:
    assert sizes(["quick"] * 4, takers=2) == [1, 1, 1, 1]


def test_a_long_line_of_quick_tasks_gives_each_taker_two_messages() -> None:
    assert sizes(["quick"] * 80, takers=2) == [20, 20, 20, 20]


def test_slow_tasks_and_those_that_nobody_has_measured_travel_alone() -> None:
    assert sizes(["slow"] * 20) == [1] * 20
    assert sizes(["unknown"] * 20) == [1] * 20
    assert sizes(["alone"] * 20) == [1] * 20
    assert sizes(["half"] * 20) == [2] * 10


@given(st.lists(st.sampled_from([*TYPES, "unknown"]), max_size=400), st.integers(1, 8))
def test_packing_keeps_every_hint_once_in_order_and_within_the_budget(types: list[str], takers: int) -> None:
    given_ = hints(*types)
    bundles = pack(given_, Crew(takers, TYPES))
    assert [hint for bundle in bundles for hint in bundle] == given_
    for bundle in bundles:
        assert 0 < len(bundle) <= MOST
        assert len(bundle) == 1 or sum(TYPES.get(hint.type, BUDGET) for hint in bundle) <= BUDGET * 1.001


def test_a_window_is_as_wide_as_it_is_set_unless_its_tasks_travel_together() -> None:
    def width(*types: str, takers: int = 2, window: int = 50) -> int:
        return reach(hints(*types), Crew(takers, {**TYPES, "nothing": 0.0}), window)

    assert width("slow", "slow") == width("unknown") == width("alone") == width("slow", "quick") == 50
    assert width("quick", "quick", takers=1) == WIDEST * 50, "never wider than that"
    assert width("quick", "quick", takers=1, window=200) == AHEAD * 100 == 400, "four messages of 0.1 s"
    assert width("half", takers=1, window=20) == 20, "wide enough already"
    assert width("nothing", takers=1, window=1000) == AHEAD * MOST


def test_a_window_that_becomes_wider_has_more_room_at_once() -> None:
    window = Window(100)
    window.measured(0, 0.0)
    window.used([100])
    window.widen(300)
    assert (window.room, window.worth_filling) == (200, True)
    window.widen(50)
    assert (window.room, window.worth_filling) == (-50, False)


def test_a_crew_is_all_who_serve_the_queue_and_as_slow_as_its_slowest() -> None:
    def worker(queues: list[str], sync: int, **pace: float) -> dict[str, Any]:
        return {"queues": queues, "slots": {"sync": sync, "async": 1000}, "pace": pace}

    workers = [worker(["default"], 4, quick=0.01), worker(["default", "io"], 2, quick=0.02, other=1.0), worker(["io"], 8, quick=9.0)]
    assert crew_of(workers, "default", "sync") == Crew(6, {"quick": 0.02, "other": 1.0})
    assert crew_of(workers, "default", "async").takers == 2
    assert crew_of([], "default", "sync") == Crew(1, {})


def test_a_window_counts_the_tasks_of_the_messages_that_were_sent_last() -> None:
    window = Window(100)
    window.measured(0, 0.0)
    assert (window.room, window.empty) == (100, True)
    window.used([40, 30, 20])
    assert (window.room, window.empty, window.worth_filling) == (10, False, False)
    window.measured(2, 1.0)
    assert (window.room, window.worth_filling) == (50, True), "the first message is gone, and with it its 40"
    window.measured(0, 2.0)
    assert (window.room, window.drained) == (100, True)


def test_another_dispatchers_messages_count_like_the_own_ones() -> None:
    window = Window(100)
    window.measured(5, 0.0)
    assert window.room == 95, "nothing is known of their size"
    window.used([10])
    window.measured(3, 1.0)
    assert window.room == 70


def test_the_smallest_window_is_filled() -> None:
    window = Window(1)
    window.measured(0, 0.0)
    assert window.worth_filling
    window.used([1])
    assert not window.worth_filling
