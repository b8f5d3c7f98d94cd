"""When a worker believes that the broker holds something back. What Postgres says is given here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskyard_worker.hearing import MOST, Hearing
from taskyard_worker.ledger import Ledger

MAIL, DEFAULT = ("mail", "sync"), ("default", "sync")
PATIENCE = 15.0


class Postgres:
    """Says of what is asked for that all of it has something unclaimed."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def call(self, work: Any) -> set[tuple[str, str]]:
        self.asked.append(work.keywords["consumed"])
        self.meanwhile()
        return set(work.keywords["consumed"])


class Watched:
    """A Hearing whose clock is ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.connected = 0
        monkeypatch.setattr("taskyard_worker.hearing.time", SimpleNamespace(monotonic=lambda: self.now))
        self.postgres = Postgres()
        self.hearing = Hearing(cast(Ledger, self.postgres), PATIENCE, {MAIL: 2, DEFAULT: 2}, self._connect)

    def _connect(self) -> None:
        self.connected += 1

    def look_after(self, seconds: float) -> int:
        """How often it has connected anew, so many seconds later."""
        self.now += seconds
        asyncio.run(self.hearing._look())
        return self.connected


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_one_that_heard_of_a_queue_lately_asks_nobody(watched: Watched) -> None:
    assert watched.look_after(PATIENCE - 1) == 0
    assert watched.postgres.asked == []
    assert watched.look_after(1) == 1


def test_what_one_queue_brings_does_not_hide_another_that_brings_nothing(watched: Watched) -> None:
    watched.now += PATIENCE
    watched.hearing.heard(*DEFAULT)
    assert watched.look_after(1) == 1
    assert watched.postgres.asked == [[MAIL]]


def test_a_consumer_that_is_full_is_not_deaf(watched: Watched) -> None:
    for _ in range(2):
        watched.hearing.heard(*MAIL)
        watched.hearing.heard(*DEFAULT)
    assert watched.look_after(PATIENCE * 3) == 0
    watched.hearing.settled(*MAIL)
    assert watched.look_after(1) == 1
    assert watched.postgres.asked == [[MAIL]]


def test_it_connects_ever_more_seldom_until_a_message_comes(watched: Watched) -> None:
    waits = []
    for _ in range(7):
        before, waited = watched.connected, 0.0
        while watched.look_after(PATIENCE) == before:
            waited += PATIENCE
        waits.append(round(waited / PATIENCE) + 1)
    assert waits == [1, 2, 4, 8, MOST, MOST, MOST]
    watched.hearing.heard(*MAIL)
    watched.hearing.settled(*MAIL)
    assert watched.look_after(PATIENCE) == 8


def test_a_message_that_comes_while_postgres_is_asked_is_heard(watched: Watched) -> None:
    def both() -> None:
        watched.hearing.heard(*MAIL)
        watched.hearing.heard(*DEFAULT)

    watched.postgres.meanwhile = both
    assert watched.look_after(PATIENCE) == 0
