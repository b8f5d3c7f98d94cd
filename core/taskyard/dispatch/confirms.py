"""Publisher confirms: which messages RabbitMQ has taken, told while others are still on their way.

Py-amqp's own way waits for each message before the next one is sent: a round trip, and a write to the disk of a quorum queue, for each.
See https://www.rabbitmq.com/docs/confirms#publisher-confirms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from amqp.exceptions import MessageNacked
from kombu import Connection


class Confirms:
    """What the broker says of the messages that are sent over one channel. Not thread-safe."""

    def __init__(self, connection: Connection, channel: Any) -> None:
        self._connection = connection
        self._sent = 0
        #: By delivery tag, which counts the channel's messages from 1: a message's place among its caller's, and its id.
        self._on_way: dict[int, tuple[int, str]] = {}
        self._taken: list[int] = []
        self._returned: set[str] = set()
        self._nacked = False
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def sending(self, place: int, task_id: str) -> None:
        """The next message of the channel is this one."""
        self._sent += 1
        self._on_way[self._sent] = (place, task_id)

    def taken(self, seconds: float) -> Iterator[int]:
        """The places of the messages that a queue has taken, as the broker says so. Those that it returned are missing.

        Raises:
            TimeoutError: it has said nothing for so many seconds.
            MessageNacked: it has refused one; the others have been told.
        """
        until = time.monotonic() + seconds
        while self._on_way:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            before = len(self._on_way)
            try:
                self._connection.drain_events(timeout=left)
            except TimeoutError as error:
                # The kernel gave the connection up (ETIMEDOUT): that is no silence of the queue.
                if error.errno is not None:
                    raise ConnectionError(str(error)) from error
                raise
            if len(self._on_way) < before:
                until = time.monotonic() + seconds
            yield from self.told()
        yield from self.told()
        self._returned.clear()
        if self._nacked:
            raise MessageNacked

    def told(self) -> list[int]:
        """What is known to be taken and was not told yet: confirmations come while others are being sent, too."""
        told, self._taken = self._taken, []
        return told

    def _settled(self, tag: int, multiple: bool) -> list[tuple[int, str]]:
        tags = [each for each in self._on_way if each <= tag] if multiple else [tag]
        return [message for each in tags if (message := self._on_way.pop(each, None))]

    def _on_ack(self, tag: int, multiple: bool) -> None:
        # What can't be routed is returned first, and then confirmed.
        self._taken += [place for place, task_id in self._settled(tag, multiple) if task_id not in self._returned]

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._nacked = bool(self._settled(tag, multiple)) or self._nacked

    def _on_return(self, _error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self._returned.add(message.properties["correlation_id"])
