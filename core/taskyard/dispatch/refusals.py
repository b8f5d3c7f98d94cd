"""What the broker refuses, in words that say what to do: a queue with other arguments, missing rights, a wrong password."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from taskyard.backoff import Backoff
from taskyard.database_errors import driver_words

#: Seconds until a refused queue is tried again, at first and at most.
FIRST, LONGEST = 1.0, 30.0

#: By AMQP's reply code, for a queue or an exchange. See https://www.rabbitmq.com/amqp-0-9-1-reference#constants.
_QUEUE: Final[Mapping[int, str]] = {
    403: "Let the broker's user configure, write and read the names that start with `broker.prefix`.",
    404: "It was deleted a moment ago; it is declared again.",
    405: "Another connection holds it alone: use another `broker.prefix`.",
    406: "It was declared with other arguments: delete it (its messages are hints, no task is lost), or use another `broker.prefix`.",
}
_CONNECTION: Final[Mapping[int, str]] = {
    403: "Correct the user and password in broker.url (CELERY_BROKER_URL).",
    530: "Correct the virtual host in broker.url (CELERY_BROKER_URL), or let the user access it.",
}


def _words(error: Exception) -> str:
    """The broker's own words; a driver's error without any is named by its type."""
    return str(getattr(error, "reply_text", None) or driver_words(error))


def _with(advice: Mapping[int, str], error: Exception) -> str:
    hint = advice.get(getattr(error, "reply_code", None) or 0)
    return f"{_words(error)}{f'. {hint}' if hint else ''}"


def queue_refusal(queue: str, error: Exception) -> str:
    """Why a queue can't be used: its name, the broker's words, and what to do."""
    return f"queue {queue}: {_with(_QUEUE, error)}"


def connection_refusal(error: Exception) -> str:
    """Why the broker takes no connection of ours: its words, and what to do."""
    return _with(_CONNECTION, error)


class RefusedQueues:
    """The lines, or deliveries, whose broker queue was refused, and when each is tried again."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], tuple[Backoff, float]] = {}

    def add(self, line: tuple[str, str]) -> float:
        """It was refused (again). Answers the seconds for which it is left alone."""
        backoff, _ = self._queues.get(line, (Backoff(FIRST, LONGEST), 0.0))
        wait = backoff.next()
        self._queues[line] = backoff, time.monotonic() + wait
        return wait

    def holds(self, line: tuple[str, str]) -> bool:
        """Is it too early to try this line again?"""
        return line in self._queues and time.monotonic() < self._queues[line][1]

    def drop(self, line: tuple[str, str]) -> bool:
        """It works. True: it was refused until now."""
        return self._queues.pop(line, None) is not None
