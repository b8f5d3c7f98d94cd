"""Hints for mistyped names: the nearest known one, at a price that whoever sends the name can't raise."""

from __future__ import annotations

import itertools

from taskyard.spelling import LONGEST, did_you_mean, near_names


def test_the_nearest_known_name_is_the_hint() -> None:
    assert did_you_mean("statsu", ["status", "type"]) == " Did you mean 'status'?"
    assert did_you_mean("frobnicate", ["status", "type"]) == ""
    assert near_names("pages.fetsh", ["pages.fetch", "pages.fetched", "mail.send"], 2) == ["pages.fetch", "pages.fetched"]


def test_without_end_many_known_names_are_looked_at_for_a_moment() -> None:
    """A client can invent queues without end, each like the next."""
    assert near_names("queue-00000008", (f"queue-{number:08}" for number in itertools.count())) == ["queue-00000008"]


def test_a_name_of_a_megabyte_is_compared_with_nothing() -> None:
    assert near_names("x" * (LONGEST + 1), itertools.repeat("x" * LONGEST)) == []
