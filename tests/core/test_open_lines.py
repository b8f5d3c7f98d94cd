"""Which lines are told to be open, and when."""

from __future__ import annotations

import pytest

from taskyard.dispatch.open_lines import REPEAT_EVERY, OpenLines, read

ONE, TWO = ("default", "sync"), ("io-2", "async")


def test_a_change_is_told_once_and_what_is_open_is_repeated_now_and_then() -> None:
    lines = OpenLines()
    lines.set(ONE, True)
    assert lines.news(100.0) == ["open default/sync"]
    lines.set(ONE, True)
    assert lines.news(100.1) == []
    lines.set(TWO, True)
    lines.set(ONE, False)
    assert lines.news(100.2) == ["closed default/sync", "open io-2/async"]
    assert lines.news(100.0 + REPEAT_EVERY) == ["open io-2/async"], "what is closed is forgotten by itself"


def test_a_change_that_was_taken_back_is_told_all_the_same() -> None:
    """Whoever heard of the first change may have missed the second."""
    lines = OpenLines()
    lines.set(ONE, True)
    lines.news(100.0)
    lines.set(ONE, False)
    lines.set(ONE, True)
    assert lines.news(100.1) == ["open default/sync"]


def test_lines_that_nobody_serves_any_more_are_closed() -> None:
    lines = OpenLines()
    for line in (ONE, TWO):
        lines.set(line, True)
    lines.news(100.0)
    lines.keep_only([TWO])
    assert lines.news(100.1) == ["closed default/sync"]


@pytest.mark.parametrize(("payload", "expected"), [("open default/sync", (ONE, True)), ("closed io-2/async", (TWO, False))])
def test_news_are_read_as_they_were_written(payload: str, expected: object) -> None:
    assert read(payload) == expected


@pytest.mark.parametrize("payload", ["", "open", "open default", "ajar default/sync", "default/sync"])
def test_other_news_are_refused(payload: str) -> None:
    with pytest.raises(ValueError, match="expected 'open queue/lane'"):
        read(payload)
