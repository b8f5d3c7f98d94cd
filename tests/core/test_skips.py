"""A line with a locked row is looked at again soon, then less often, and not at all once nothing was skipped."""

from __future__ import annotations

from taskyard.dispatch.skips import SHORTEST, Skips

ONE, TWO = ("default", "sync"), ("io", "async")


def test_a_line_is_due_after_pauses_that_double_up_to_the_longest() -> None:
    skips, now, pauses = Skips(longest=0.05), 100.0, []
    for _ in range(8):
        skips.note(ONE, True, now)
        assert skips.due(now) == []
        pauses.append(round(skips.next_at() - now, 6))
        now = skips.next_at()
        assert skips.due(now) == [ONE]
    assert pauses == [SHORTEST, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, 0.05]


def test_a_line_where_nothing_was_skipped_is_forgotten_and_begins_anew() -> None:
    skips = Skips(longest=0.05)
    for line in (ONE, TWO, TWO):
        skips.note(line, True, 100.0)
    skips.note(ONE, False, 100.0)
    assert (skips.due(101.0), skips.next_at()) == ([TWO], 100.0 + 2 * SHORTEST)
    skips.clear()
    assert (skips.due(101.0), skips.next_at()) == ([], float("inf"))
    skips.note(TWO, True, 200.0)
    assert skips.next_at() == 200.0 + SHORTEST
