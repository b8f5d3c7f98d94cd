"""The real dispatcher and publisher on real brokers, with a worker that is only a row: what is handed over, and what is found again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import pytest
from celery import Celery
from kombu import Connection
from pydantic import SecretStr
from sqlalchemy import Engine, text

from taskyard import clock, lifecycle
from taskyard.channels import announce
from taskyard.dispatch import chores, dispatcher, look
from taskyard.dispatch.app import broker_queue, broker_url, create_celery, delivery_queue, is_amqp
from taskyard.dispatch.dispatcher import Dispatcher
from taskyard.dispatch.publisher import BrokerAway, Publisher, QueueRefused, QueueSilent
from taskyard.settings import Route, Settings
from tests.broker import forget
from tests.ground import depth
from tests.stack import PATIENCE, until

from .life import Life, begin, new

LINES = (("default", "sync"), ("default", "async"), ("io", "sync"))
CLOSED_PORT = SecretStr("amqp://guest:guest@127.0.0.1:1//")


class Counting(Publisher):
    """The publisher, which also counts how often the broker is asked."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked = 0
        self.lines: set[tuple[str, str]] = set()

    def depth(self, queue: str, lane: str) -> int:
        self.asked += 1
        self.lines.add((queue, lane))
        return super().depth(queue, lane)


@dataclass
class Yard:
    """Dispatchers on one database and broker, and a look into both."""

    settings: Settings
    life: Life
    connection: Connection
    publishers: list[Counting] = field(default_factory=list)

    @contextmanager
    def dispatcher(self, broker: SecretStr | None = None, **dispatch: Any) -> Iterator[Dispatcher]:
        """A dispatcher that runs in a thread; its settings' dispatch section with changes."""
        changed = self.settings.dispatch.model_copy(update={"tick": 0.2} | dispatch)
        settings = self.settings.model_copy(update={"dispatch": changed})
        if broker is not None:
            settings = settings.model_copy(update={"broker": settings.broker.model_copy(update={"url": broker})})
        publisher = Counting(create_celery(settings), settings.broker)
        self.publishers.append(publisher)
        loop = Dispatcher(settings, self.life.engine, publisher)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield loop
        finally:
            loop.stop()
            thread.join(20)
            assert not thread.is_alive()

    def depth(self, queue: str = "default", lane: str = "sync") -> int:
        publisher = Publisher(create_celery(self.settings), self.settings.broker)
        try:
            return publisher.depth(queue, lane)
        finally:
            publisher.close()

    def depth_of_any(self, queue: str, lane: str) -> int | None:
        """Messages of a line's queue; None if the broker has no such queue."""
        return depth(broker_url(self.settings.broker), broker_queue(self.settings.broker, queue, lane).name)

    def take(self, queue: str = "default", lane: str = "sync", limit: int = 1000) -> list[str]:
        """The task ids that wait in a broker queue, in its order; they are gone after."""
        return self._take(broker_queue(self.settings.broker, queue, lane), limit)

    def take_deliveries(self) -> list[str]:
        return self._take(delivery_queue(self.settings.broker), 1000)

    def _take(self, queue: Any, limit: int) -> list[str]:
        found: list[str] = []
        with self.connection.channel() as channel:
            bound = queue.bind(channel)
            bound.declare()
            while len(found) < limit and (message := bound.get()) is not None:
                message.ack()
                assert message.payload[0] == [[message.headers["id"]]] or message.headers["task"] == "taskyard.deliver"
                found.append(message.headers["id"])
        return found

    def delete_queue(self, queue: str, lane: str) -> None:
        with self.connection.channel() as channel:
            broker_queue(self.settings.broker, queue, lane).bind(channel).delete()

    def announce(self, queue: str = "default", lane: str = "sync") -> None:
        with self.life.engine.begin() as connection:
            announce(connection, [(queue, lane)])

    def statuses(self, tasks: list[UUID]) -> list[str]:
        return [self.life.status(task) for task in tasks]

    def all_queued(self, tasks: list[UUID]) -> Callable[[], bool]:
        return lambda: set(self.statuses(tasks)) == {"queued"}


@pytest.fixture
def yard(settings: Settings, engine: Engine) -> Iterator[Yard]:
    with Connection(broker_url(settings.broker)) as connection:
        made = Yard(settings, Life(engine), connection)
        # A worker that never takes anything, and whose next beat is far away.
        made.life.worker("served", silent=-3600, queues=sorted({queue for queue, _ in LINES}))
        yield made
    forget(broker_url(settings.broker), settings.broker.prefix, {"nobodys", *(queue for queue, _ in LINES)})


def ids(tasks: list[UUID]) -> list[str]:
    return [str(task) for task in tasks]


def test_the_window_is_kept_and_filled_again_in_order_of_priority(yard: Yard) -> None:
    tasks = {priority: [yard.life.submit(priority=priority) for _ in range(2)] for priority in (0, 9, 5)}
    line = ids(tasks[9] + tasks[5] + tasks[0])
    with yard.dispatcher(window=3):
        until(lambda: yard.depth() == 3)
        assert yard.take(limit=1) == line[:1]
        until(lambda: yard.depth() == 3)
        assert yard.take(limit=3) == line[1:4]
        until(lambda: yard.depth() == 2)
        assert yard.take() == line[4:]
    assert yard.take() == []


def test_a_ready_task_whose_row_is_locked_is_looked_at_again_before_the_next_tick(yard: Yard) -> None:
    """Whoever holds it may leave it ready, and tells nobody."""
    with yard.dispatcher(tick=3600):
        first, second = yard.life.submit(), yard.life.submit()
        with begin(yard.life.engine) as other:
            other.execute(text("UPDATE tasks SET awaited = true WHERE id = :id"), {"id": first})
            yard.announce()
            until(lambda: yard.take() == ids([second]))
            other.commit()
        until(lambda: yard.take() == ids([first]))


def test_each_lane_and_queue_has_a_window_of_its_own(yard: Yard) -> None:
    tasks = {line: [yard.life.submit(queue=line[0], lane=line[1]) for _ in range(3)] for line in LINES}
    with yard.dispatcher(window=2):
        for line in LINES:
            until(lambda line=line: yard.depth(*line) == 2)  # type: ignore[misc]  # a lambda with a default
    for line in LINES:
        assert yard.take(*line) == ids(tasks[line][:2])


def test_a_notification_wakes_it(yard: Yard) -> None:
    with yard.dispatcher(tick=600.0):
        first = yard.life.submit()
        until(lambda: yard.life.column("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskyard-listener'"))
        yard.announce()
        until(yard.all_queued([first]))
        second = yard.life.submit(lane="async")
        yard.announce(lane="async")
        until(yard.all_queued([second]))


def test_a_planned_task_is_dispatched_when_it_is_due(yard: Yard) -> None:
    with yard.dispatcher(tick=600.0):
        until(lambda: yard.life.column("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskyard-listener'"))
        task, later = yard.life.submit(delay=0.5), yard.life.submit(delay=3600.0)
        yard.announce()
        until(yard.all_queued([task]))
        assert yard.life.row(task)["queued_at"] >= yard.life.row(task)["run_at"]
        assert yard.life.status(later) == "scheduled"


def test_a_lost_message_is_sent_again(yard: Yard) -> None:
    tasks = [yard.life.submit() for _ in range(3)]
    with yard.dispatcher(sweep_after=0.5):
        until(lambda: yard.depth() == 3)
        assert yard.take() == ids(tasks)
        until(lambda: yard.depth() == 3)
    assert yard.take() == ids(tasks)
    assert yard.life.column("SELECT value FROM counters WHERE name = 'taskyard_messages_total'") == [6]


def test_a_paused_queue_is_not_dispatched_until_it_is_resumed(yard: Yard) -> None:
    yard.life.pause("default")
    paused, other = yard.life.submit(), yard.life.submit(queue="io")
    with yard.dispatcher():
        until(yard.all_queued([other]))
        yard.announce()
        assert yard.life.status(paused) == "pending"
        yard.life.execute("UPDATE queues SET paused_at = NULL")
        yard.announce()
        until(yard.all_queued([paused]))
    assert yard.take() == ids([paused])


def test_a_queue_that_was_deleted_behind_its_back_is_declared_anew(yard: Yard) -> None:
    with yard.dispatcher(tick=600.0):
        until(lambda: yard.life.column("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskyard-listener'"))
        before = yard.life.submit()
        yard.announce()
        until(lambda: yard.depth() == 1)
        yard.delete_queue("default", "sync")
        after = yard.life.submit()
        yard.announce()
        until(yard.all_queued([before, after]))
        if is_amqp(yard.settings.broker):
            until(lambda: yard.depth() == 1)
            assert yard.take() == ids([after])


def test_without_a_broker_tasks_wait_in_line_and_nothing_spins(yard: Yard) -> None:
    tasks = [yard.life.submit(), yard.life.submit(queue="io")]
    with yard.dispatcher(broker=CLOSED_PORT):
        until(lambda: yard.publishers[0].asked >= 3)
        for _ in range(50):
            yard.announce()
        assert yard.publishers[0].asked <= 5
        assert yard.statuses(tasks) == ["pending", "pending"]
    with yard.dispatcher():
        until(yard.all_queued(tasks))
    assert (yard.take(), yard.take("io")) == (ids(tasks[:1]), ids(tasks[1:]))


def test_what_the_broker_did_not_confirm_goes_back_in_line(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [yard.life.submit() for _ in range(3)]
    sent: list[str] = []
    send = Celery.send_task

    def breaks_once(self: Celery, *args: Any, **options: Any) -> None:
        if len(sent) == 1:
            sent.append("broken")
            raise ConnectionResetError
        send(self, *args, **options)
        sent.extend(options["args"][0])

    monkeypatch.setattr(Celery, "send_task", breaks_once)
    # RabbitMQ had not confirmed the first yet.
    again = tasks if is_amqp(yard.settings.broker) else tasks[1:]
    with yard.dispatcher():
        until(lambda: len(sent) == 2 + len(again))
        until(yard.all_queued(tasks))
    assert sent == [str(tasks[0]), "broken", *map(str, again)]
    assert set(yard.take()) == set(ids(tasks))


def test_messages_are_on_their_way_together_and_what_a_lost_queue_returns_is_sent_once_more(yard: Yard) -> None:
    publisher = Publisher(create_celery(yard.settings), yard.settings.broker)
    tasks = [yard.life.submit() for _ in range(20)]
    hints = [[lifecycle.Hint(task, "t.echo", 5)] for task in tasks]
    publisher.publish("default", "sync", hints[:10])
    # What is in a queue when it is deleted was hints. Only RabbitMQ returns what comes after.
    if is_amqp(yard.settings.broker):
        yard.delete_queue("default", "sync")
    publisher.publish("default", "sync", hints[10:])
    publisher.close()
    assert yard.take() == ids(tasks[10:] if is_amqp(yard.settings.broker) else tasks)


def test_two_dispatchers_publish_each_task_once(yard: Yard) -> None:
    tasks = [yard.life.submit(priority=n % 10) for n in range(200)]
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(yard.dispatcher())
        until(yard.all_queued(tasks))
    assert sorted(yard.take()) == sorted(ids(tasks))


def test_two_dispatchers_fill_no_more_than_a_window_each(yard: Yard) -> None:
    """Each knows only its own part of what is on its way. What is too much stays as short as there are dispatchers."""
    for _ in range(500):
        yard.life.submit()
    most = 0
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(yard.dispatcher(window=50))
        while not all(publisher.asked >= 10 for publisher in yard.publishers):
            most = max(most, len(yard.life.column("SELECT 1 FROM tasks WHERE status = 'queued'")))
    print(f"\nat most {most} queued, with a window of 50")
    assert 50 <= most <= 100


def test_a_crowd_that_is_due_at_once_is_moved_by_many_commits_and_does_not_hold_up_the_dispatch(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    late, due = [[yard.life.submit(delay=60.0) for _ in range(25)] for _ in range(2)]
    yard.life.execute("UPDATE tasks SET expires_at = now(), next_run_at = now() + interval '1 day' WHERE id = ANY (:ids)", ids=late)
    yard.life.execute("UPDATE tasks SET next_run_at = now() WHERE id = ANY (:ids)", ids=due)
    monkeypatch.setattr(dispatcher, "BATCH", 10)
    monkeypatch.setattr(dispatcher, "BATCHES", 2)
    publisher = Counting(create_celery(yard.settings), yard.settings.broker)
    loop = Dispatcher(yard.settings, yard.life.engine, publisher)
    assert loop.tick() == 0, "there is more: the next tick comes at once"
    assert (yard.statuses(late).count("expired"), yard.statuses(due).count("queued")) == (20, 20)
    assert loop.tick() > 0
    assert (yard.statuses(late).count("expired"), yard.statuses(due).count("scheduled")) == (25, 0)
    loop.stop()
    loop.run()  # It has nothing left to do but to close what is open.


def test_a_queue_that_refuses_messages_holds_up_no_other(yard: Yard) -> None:
    if not is_amqp(yard.settings.broker):
        pytest.skip("Redis refuses nothing")
    refused = broker_queue(yard.settings.broker, "default", "sync").name
    with yard.connection.channel() as channel:
        channel.queue_declare(refused, durable=True, auto_delete=False, arguments={"x-queue-type": "classic"})
    stuck, other = yard.life.submit(), yard.life.submit(queue="io")
    with yard.dispatcher():
        until(yard.all_queued([other]))
        assert yard.life.status(stuck) == "pending"


def test_tasks_of_a_queue_that_no_worker_serves_wait_in_the_database_until_one_registers(yard: Yard) -> None:
    waiting = yard.life.submit(queue="nobodys"), yard.life.submit(queue="nobodys", lane="async")
    served = yard.life.submit()
    with yard.dispatcher(tick=600.0):
        until(yard.all_queued([served]))
        yard.announce("nobodys")
        yard.announce("nobodys", "async")
        assert yard.statuses(list(waiting)) == ["pending", "pending"]
        assert yard.depth_of_any("nobodys", "sync") is None, "the broker has no queue of that name"
        # The next tick is ten minutes away: it is the registration that wakes the dispatcher.
        yard.life.worker("late", silent=-3600, queues=["nobodys"])
        until(yard.all_queued(list(waiting)))
    assert yard.take("nobodys") + yard.take("nobodys", "async") == ids(list(waiting))


def test_a_thousand_invented_queues_cost_the_dispatch_of_others_nothing(yard: Yard) -> None:
    """Counted, not timed: the lines that a pass looks at, and the queues that the broker is asked for."""
    with yard.life.engine.begin() as connection:
        lifecycle.submit(connection, [new(queue=f"invented-{number}", namespace="noisy") for number in range(1000)])
        announce(connection, [(f"invented-{number}", "sync") for number in range(1000)])
    with yard.life.engine.connect() as connection:
        assert look.lines(connection, look.served_queues(look.workers(connection))) == []
    mine = yard.life.submit(namespace="quiet")
    with yard.dispatcher(tick=600.0):
        until(yard.all_queued([mine]))
        with yard.life.engine.begin() as connection:
            announce(connection, [*((f"invented-{number}", "sync") for number in range(1000)), ("default", "sync")])
        later = yard.life.submit(namespace="quiet")
        yard.announce()
        until(yard.all_queued([later]))
    assert yard.publishers[0].lines == {("default", "sync")}
    assert yard.life.column("SELECT DISTINCT status FROM tasks WHERE namespace = 'noisy'") == ["pending"]


def test_the_brokers_queues_go_away_once_no_worker_serves_them_and_no_task_is_in_line(yard: Yard) -> None:
    # As the settings are frozen: a copy with its own patience.
    yard.settings = yard.settings.model_copy(update={"broker": yard.settings.broker.model_copy(update={"unused_after": 0.2})})
    worker = yard.life.worker("gone", silent=-3600, queues=["nobodys", "io"])
    task = yard.life.submit(queue="nobodys")
    with yard.dispatcher():
        until(yard.all_queued([task]))
        yard.life.execute("DELETE FROM workers WHERE id = :id", id=worker)
        served = yard.life.submit(queue="io")
        until(yard.all_queued([served]))
        until(lambda: yard.depth_of_any("nobodys", "async") is None or yard.depth_of_any("nobodys", "sync") == 1)
        assert yard.depth_of_any("nobodys", "sync") == 1, "a task is in line there"
        yard.life.person("cancel", task)
        until(lambda: yard.life.column("SELECT queue FROM broker_queues ORDER BY queue") == ["default", "io"])
        assert yard.depth_of_any("nobodys", "sync") is None, "its message was of a task that has ended"
        yard.life.worker("back", silent=-3600, queues=["nobodys"])
        again = yard.life.submit(queue="nobodys")
        until(yard.all_queued([again]))
    assert yard.take("nobodys") == ids([again])
    assert yard.depth_of_any("io", "sync") == 1


def test_a_queue_that_somebody_consumes_from_is_not_deleted(yard: Yard) -> None:
    if not is_amqp(yard.settings.broker):
        pytest.skip("Redis knows no consumers")
    publisher = Publisher(create_celery(yard.settings), yard.settings.broker)
    publisher.depth("io", "sync")
    with yard.connection.channel() as channel:
        tag = channel.basic_consume(broker_queue(yard.settings.broker, "io", "sync").name)
        assert not publisher.remove("io", "sync")
        channel.basic_cancel(tag)
        until(lambda: publisher.remove("io", "sync"))
    assert yard.depth_of_any("io", "sync") is None
    assert publisher.remove("io", "sync"), "it is gone already"
    assert publisher.depth("io", "sync") == 0, "and declared anew where it is needed"
    publisher.close()


def test_a_refused_queue_is_named_with_what_differs_and_works_again_once_it_is_mended(yard: Yard) -> None:
    if not is_amqp(yard.settings.broker):
        pytest.skip("Redis refuses nothing")
    refused = broker_queue(yard.settings.broker, "default", "sync").name
    with yard.connection.channel() as channel:
        channel.queue_declare(refused, durable=True, auto_delete=False, arguments={"x-max-priority": 10})
    publisher = Publisher(create_celery(yard.settings), yard.settings.broker)
    publisher.depth("io", "sync")
    with pytest.raises(QueueRefused, match=rf"queue {refused}: PRECONDITION_FAILED - inequivalent arg 'x-[a-z-]+' for queue .*delete it"):
        publisher.depth("default", "sync")
    assert publisher.connected, "the connection is good for the other queues"
    publisher.close()
    stuck = yard.life.submit()
    with yard.dispatcher():
        until(lambda: yard.life.status(stuck) == "pending" and yard.publishers[0].asked > 0)
        yard.delete_queue("default", "sync")
        until(yard.all_queued([stuck]))


def test_a_wrong_password_is_told_as_such_and_not_as_a_queues_fault(yard: Yard) -> None:
    if not is_amqp(yard.settings.broker):
        pytest.skip("the embedded broker has no password")
    wrong = yard.settings.broker.model_copy(update={"url": SecretStr("amqp://guest:wrong@127.0.0.1:5672//")})
    publisher = Publisher(create_celery(yard.settings.model_copy(update={"broker": wrong})), wrong)
    with pytest.raises(BrokerAway, match=r"ACCESS_REFUSED.*Correct the user and password") as raised:
        publisher.depth("default", "sync")
    assert not isinstance(raised.value, QueueRefused)


def test_notifications_have_a_window_too_and_routes_come_from_the_settings(yard: Yard) -> None:
    yard.settings = yard.settings.model_copy(update={"routes": (Route(name="all", notifier="log", events=("task.submitted",)),)})
    with yard.dispatcher(window=2):
        until(lambda: yard.life.column("SELECT name FROM routes") == ["all"])
        for _ in range(3):
            yard.life.submit(delay=3600.0)
        taken: list[str] = []

        def all_taken() -> bool:
            taken.extend(yard.take_deliveries())
            return len(taken) == 3

        until(all_taken)
    assert sorted(taken) == [f"delivery-{id_}" for id_ in yard.life.column("SELECT id FROM deliveries ORDER BY id")]


def test_silent_workers_are_reaped_and_expired_tasks_ended(yard: Yard) -> None:
    lost = yard.life.running(yard.life.worker(silent=60))
    expired = yard.life.submit(expires_at="2001-01-01T00:00:00Z")
    with yard.dispatcher(worker_silence=0.5):
        until(lambda: yard.statuses([lost, expired]) == ["queued", "expired"])
    assert yard.take() == ids([lost])


def test_after_a_standstill_of_the_machine_workers_get_the_time_to_beat(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Dispatcher(yard.settings, yard.life.engine, Publisher(create_celery(yard.settings), yard.settings.broker))
    stopped._steady_since = float("-inf")
    stopped._rest(0.0)
    assert stopped._is_steady()
    times = iter([1000.0, 4600.0])
    monkeypatch.setattr(clock, "now", lambda: next(times))
    stopped._rest(0.0)
    assert not stopped._is_steady()
    stopped.stop()
    stopped.run()


def test_a_chore_that_always_fails_keeps_no_task_from_its_dispatch_and_no_silent_worker_from_being_found(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "PURGE_EVERY", 0.05)
    monkeypatch.setattr(chores, "AGAIN", 0.05)
    yard.life.execute("ALTER TABLE idempotency_keys RENAME TO not_ours")
    lost, waiting = yard.life.running(yard.life.worker(silent=60)), yard.life.submit()
    with yard.dispatcher(worker_silence=0.5):
        until(yard.all_queued([lost, waiting]))


def test_a_row_of_a_silent_worker_that_somebody_keeps_locked_holds_up_no_dispatch(yard: Yard) -> None:
    lost, waiting = yard.life.running(yard.life.worker(silent=60)), yard.life.submit()
    loop = Dispatcher(yard.settings, yard.life.engine, Publisher(create_celery(yard.settings), yard.settings.broker))
    loop._steady_since = float("-inf")
    with yard.life.engine.connect() as person:
        person.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE"), {"id": lost})
        loop.tick()
        assert yard.statuses([lost, waiting]) == ["running", "queued"]
        person.rollback()
    loop._reap_at = 0.0
    loop.tick()
    assert yard.statuses([lost, waiting]) == ["queued", "queued"]
    loop.stop()
    loop.run()


def test_a_purge_that_failed_and_is_overdue_makes_no_busy_loop(yard: Yard) -> None:
    yard.life.execute("ALTER TABLE idempotency_keys RENAME TO not_ours")
    failing = Dispatcher(yard.settings, yard.life.engine, Publisher(create_celery(yard.settings), yard.settings.broker))
    failing.tick()
    failing._purge_at = 0.0
    assert failing.tick() > 0
    failing.stop()
    failing.run()


def test_a_queue_that_confirms_nothing_is_given_up_and_then_replaced(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_celery(yard.settings)
    publisher = Publisher(app, yard.settings.broker)
    hint = [[lifecycle.Hint(yard.life.submit(), "t.echo", 5)]]
    publisher.publish("default", "sync", hint)

    def unconfirmed(*_: object, **__: object) -> None:
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(app, "send_task", unconfirmed)
        for _ in range(2):
            with pytest.raises(QueueSilent):
                publisher.publish("default", "sync", hint)
    publisher.publish("default", "sync", hint)
    publisher.close()
    # What was in the old queue is gone with it: a hint, which is sent again when it is missed.
    assert len(yard.take()) == (1 if is_amqp(yard.settings.broker) else 2)


@contextmanager
def told_lines(yard: Yard) -> Iterator[Callable[[str], None]]:
    """Gives a function that waits until dispatchers have told this of a line."""
    url = yard.life.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN taskyard_lines")

        def wait_for(payload: str) -> None:
            assert any(note.payload == payload for note in listener.notifies(timeout=PATIENCE)), f"{payload} was not told"

        yield wait_for


def test_a_line_is_open_to_direct_hints_while_its_backlog_is_short(yard: Yard) -> None:
    with told_lines(yard) as told, yard.dispatcher(window=4):
        told("open default/sync")
        tasks = [yard.life.submit() for _ in range(5)]
        yard.announce()
        told("closed default/sync")
        for task in tasks:
            yard.life.person("cancel", task)
        yard.take()
        told("open default/sync")


def test_a_paused_line_and_one_that_nobody_serves_are_closed_to_direct_hints(yard: Yard) -> None:
    with told_lines(yard) as told, yard.dispatcher():
        told("open io/sync")
        yard.life.execute("INSERT INTO queues (name, paused_at) VALUES ('io', now())")
        told("closed io/sync")
        yard.life.execute("UPDATE workers SET queues = '{io}'")
        told("closed default/sync")


def test_a_look_for_lost_direct_hints_dispatches_what_is_still_pending(yard: Yard) -> None:
    with yard.dispatcher(tick=3600):
        until(lambda: yard.life.column("SELECT id FROM dispatchers"), what="its first look")
        task = yard.life.submit()
        yard.life.execute("SELECT pg_notify('taskyard_ready', '?default/sync')")
        until(yard.all_queued([task]))
        until(lambda: yard.depth() == 1)
