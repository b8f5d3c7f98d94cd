"""Publishes hints, and knows which of them the broker has taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog
from amqp.exceptions import MessageNacked
from celery import Celery
from kombu import Connection, Queue
from kombu.exceptions import ChannelError

from taskyard import failpoints
from taskyard.database_errors import driver_words
from taskyard.dispatch.app import DELIVER, RUN, broker_queue, delivery_queue, is_amqp
from taskyard.dispatch.confirms import Confirms
from taskyard.dispatch.messages import send
from taskyard.dispatch.refusals import connection_refusal, queue_refusal
from taskyard.errors import TaskyardError
from taskyard.lifecycle import Hint
from taskyard.settings import BrokerSettings

log = structlog.get_logger(__name__)


class BrokerAway(TaskyardError):
    """The broker can't be reached, or did not confirm."""

    def __init__(self, message: str, unpublished: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.unpublished = tuple(unpublished)


class QueueRefused(BrokerAway):
    """The broker refuses one queue, or what is sent to it. Others may work."""


class QueueSilent(QueueRefused):
    """One queue does not confirm what it gets, on a connection that works."""


#: A queue that was silent so many times in a row is replaced by a new one.
SILENCES = 2


@dataclass(frozen=True, slots=True)
class _Message:
    """What is sent for something: its ids, and the names that Flower shows."""

    what: Any
    ids: list[Any]
    task_id: str
    shadow: str


def _whats(messages: Mapping[int, _Message]) -> list[Any]:
    return [message.what for message in messages.values()]


class Publisher:
    """One connection to the broker, kept by the dispatcher alone. Not thread-safe."""

    def __init__(self, app: Celery, settings: BrokerSettings) -> None:
        self._app = app
        self._settings = settings
        self._connection: Connection | None = None
        self._producer: Any = None
        self._confirms: Confirms | None = None
        self._looking: Any = None
        self._declared: set[str] = set()
        self._silences: Counter[str] = Counter()
        self._blocked = False

    def close(self, *, politely: bool = True) -> None:
        """Drop the connection; the next call makes a new one. Politely, the broker is told, and has to answer."""
        connection, self._connection, self._producer, self._confirms, self._looking = self._connection, None, None, None, None
        self._declared.clear()
        self._blocked = False
        if connection is not None:
            with _quietly():
                if not politely and connection.connected and is_amqp(self._settings):
                    connection.connection.collect()
                connection.release()

    @property
    def connected(self) -> bool:
        """Is there a connection? It may be broken, which the next call finds."""
        return self._connection is not None

    def depth(self, queue: str, lane: str) -> int:
        """Messages of a lane that wait in the broker (those that a worker holds are not counted).

        Raises:
            BrokerAway: the broker can't be reached.
        """
        return self._depth(broker_queue(self._settings, queue, lane))

    def delivery_depth(self) -> int:
        """Notifications that wait in the broker. Raises BrokerAway."""
        return self._depth(delivery_queue(self._settings))

    def _depth(self, target: Queue) -> int:
        with self._outages(target):
            self._declare(target)
            if (found := self._look_at(target)) is not None:
                return int(found.message_count)
            self._declared.discard(target.name)
            self._declare(target)
            return 0

    def _look_at(self, target: Queue) -> Any:
        """The broker's counts for a queue (``message_count``, ``consumer_count``); None if there is no such queue."""
        # A missing queue closes the channel, so this has one of its own. Opening it each time would be two round trips more.
        if self._looking is None:
            self._looking = self._connected().channel()
        try:
            return target.bind(self._looking).queue_declare(passive=True)
        except ChannelError:
            self._looking = None
            return None

    def remove(self, queue: str, lane: str) -> bool:
        """Delete a line's queue, unless somebody consumes from it. Messages in it were hints.

        False: it has a consumer.

        Raises:
            BrokerAway: the broker can't be reached, or refuses.
        """
        target = broker_queue(self._settings, queue, lane)
        with self._outages(target):
            # A quorum queue knows no if-unused, so its consumers are counted first. One that comes in between declares its queue anew.
            found = self._look_at(target)
            if found is not None and found.consumer_count:
                return False
            if found is not None:
                with self._connected().channel() as channel:
                    target.bind(channel).delete()
            self._declared.discard(target.name)
            return True

    def publish(self, queue: str, lane: str, bundles: Sequence[Sequence[Hint]]) -> None:
        """Send one message a bundle, and wait until all are confirmed.

        Raises:
            BrokerAway: with the bundles that the broker has not confirmed.
        """
        # Flower shows the first task's id and type, and how many travel with it.
        names = [str(bundle[0].id) if len(bundle) == 1 else f"{bundle[0].id}+{len(bundle) - 1}" for bundle in bundles]
        messages = [_Message(bundle, [str(hint.id) for hint in bundle], name, bundle[0].type) for bundle, name in zip(bundles, names, strict=True)]
        self._publish(RUN, broker_queue(self._settings, queue, lane), messages)

    def publish_deliveries(self, ids: Sequence[int], names: Sequence[str]) -> None:
        """Send one message a delivery. Raises BrokerAway with the ids that were not confirmed."""
        messages = [_Message(id_, [id_], f"delivery-{id_}", f"deliver.{notifier}") for id_, notifier in zip(ids, names, strict=True)]
        self._publish(DELIVER, delivery_queue(self._settings), messages)

    def _publish(self, name: str, target: Queue, messages: Sequence[_Message]) -> None:
        if not messages:
            return
        unconfirmed = dict(enumerate(messages))
        with self._outages(target, unconfirmed):
            # A queue that was deleted behind our back returns its messages: declare it anew and send them once more.
            for _ in range(2):
                self._declare(target)
                self._send(name, target, unconfirmed)
                if not unconfirmed:
                    del self._silences[target.name]
                    return
                self._declared.discard(target.name)
            raise QueueRefused(f"queue {target.name} takes no messages")

    def _send(self, name: str, target: Queue, unconfirmed: dict[int, _Message]) -> None:
        """Send messages; what a queue has taken is no longer among them."""
        self._get_ready()
        try:
            for place, message in list(unconfirmed.items()):
                failpoints.hit("publish.unsent")
                if self._confirms:
                    self._confirms.sending(place, message.task_id)
                send(self._app, self._producer, name, target, message.ids, message.task_id, message.shadow, mandatory=True)
                if not self._confirms:
                    self._confirmed(place, unconfirmed)
            if self._confirms:
                for place in self._confirms.taken(self._settings.confirm_timeout):
                    self._confirmed(place, unconfirmed)
        except Exception as error:
            for place in self._confirms.told() if self._confirms else ():
                self._confirmed(place, unconfirmed)
            if not isinstance(error, TimeoutError):
                raise
            if self._blocked:
                # An alarm (memory, disk) holds up every publisher: no queue is to blame.
                raise ConnectionError("RabbitMQ blocks publishers: it is low on memory or disk, see its log") from error
            raise QueueSilent(f"queue {target.name} confirmed nothing in {self._settings.confirm_timeout:g} s") from error

    def _confirmed(self, place: int, unconfirmed: dict[int, _Message]) -> None:
        del unconfirmed[place]
        failpoints.hit("publish.confirmed")

    def _replace_if_silent(self, target: Queue) -> None:
        """Delete a queue that stays silent; it is declared anew with the next message, and its messages were hints.

        A RabbitMQ that is killed within a second of a quorum queue's first declaration may come back with a queue that never finds
        a leader (seen with 3.10): it takes messages and confirms none, for ever.
        """
        self._silences[target.name] += 1
        if self._silences[target.name] < SILENCES or not is_amqp(self._settings):
            return
        log.error("broker.queue_replaced", queue=target.name, consequence="its messages are sent again")
        del self._silences[target.name]
        with self._connected().channel() as channel:
            target.bind(channel).delete()

    def _declare(self, target: Queue) -> None:
        if target.name in self._declared:
            return
        connection = self._connected()
        try:
            with connection.channel() as channel:
                target.bind(channel).declare()
        except ChannelError as error:
            raise QueueRefused(queue_refusal(target.name, error)) from error
        self._declared.add(target.name)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._app.connection_for_write(transport_options=self._bounds())
            try:
                self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=self._settings.confirm_timeout)
            except Exception as error:
                # RabbitMQ refuses a password as it refuses a queue: by a channel's error. But here it concerns them all.
                raise BrokerAway(f"{self._place()}: {type(error).__name__}: {connection_refusal(error)}") from error
        return self._connection

    def _place(self) -> str:
        """Where the broker is, without the password."""
        return str(self._app.connection_for_write().as_uri())

    def _on_blocked(self, _reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    def _bounds(self) -> dict[str, Any]:
        """Options that bound each wait for the broker: one that is stopped keeps its connections, and says nothing."""
        seconds = self._settings.confirm_timeout
        if is_amqp(self._settings):
            return {"read_timeout": seconds, "write_timeout": seconds, "on_blocked": self._on_blocked, "on_unblocked": self._on_unblocked}
        return {"socket_timeout": seconds, "socket_connect_timeout": seconds}

    def _get_ready(self) -> None:
        if self._producer is None:
            channel = self._connected().channel()
            # Only RabbitMQ confirms.
            self._confirms = Confirms(self._connected(), channel) if is_amqp(self._settings) else None
            self._producer = self._app.amqp.Producer(channel)

    @contextmanager
    def _outages(self, target: Queue, unconfirmed: Mapping[int, _Message] = MappingProxyType({})) -> Iterator[None]:
        try:
            yield
        except QueueSilent as error:
            # Its channel waits for the queue, and would not even close.
            self.close(politely=False)
            with self._outages(target, unconfirmed):
                self._replace_if_silent(target)
            raise QueueSilent(str(error), _whats(unconfirmed)) from error
        except QueueRefused as error:
            # It was refused on a channel of its own: the connection is good for the other queues.
            raise QueueRefused(str(error), _whats(unconfirmed)) from error
        # The broker is there, and says no to what was sent: a right is missing, or a limit is reached.
        except (ChannelError, MessageNacked) as error:
            self.close()
            raise QueueRefused(queue_refusal(target.name, error), _whats(unconfirmed)) from error
        except BrokerAway as error:
            self.close(politely=False)
            raise BrokerAway(str(error), _whats(unconfirmed)) from error
        # What a broken connection raises differs by transport, and a wrong message can't reach here: all of it is an outage.
        except Exception as error:
            self.close(politely=False)
            raise BrokerAway(f"{self._place()}: {type(error).__name__}: {driver_words(error)}", _whats(unconfirmed)) from error


@contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.debug("broker.close_failed", error=repr(error))
