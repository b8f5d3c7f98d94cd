"""What a scrape reads from the database about this moment: each look is by index, and bounded however deep the backlog is."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from taskyard import backlog, dispatchers, metrics
from taskyard.backlog import COUNT_LIMIT
from taskyard.database import APPLICATION
from taskyard.dispatchers import BrokerState
from taskyard.metrics import Key, Metric, Tally
from taskyard.settings import Settings
from taskyard.workers import LiveWorker, live, longest

TASKS = Metric("taskyard_tasks", "gauge", "Tasks that have not ended. Counting stops early in a deep backlog.", ("type", "queue", "status"))
CAPPED = Metric("taskyard_tasks_capped", "gauge", "1 where counting stopped early: the true numbers of `taskyard_tasks` are at least these.", ("queue",))
OLDEST = Metric(
    "taskyard_oldest_pending_seconds",
    "gauge",
    "How long the oldest task that could start has waited: in line, in the broker, or parked. 0: none waits.",
    ("queue",),
)
PARKED = Metric(
    "taskyard_tasks_parked",
    "gauge",
    "Tasks that a worker put aside because it lacks their type, or could not start its plugin. They are tried again after `dispatch.park_delay`. "
    f"Counted up to {COUNT_LIMIT:,}.",
    ("type", "queue"),
)
PAUSED = Metric("taskyard_queue_paused", "gauge", "1 where a queue is paused.", ("queue",))
WINDOW_FILL = Metric("taskyard_window_fill", "gauge", "Tasks that were handed to the broker and not yet claimed.", ("queue", "lane"))
WINDOW_SIZE = Metric(
    "taskyard_window_size", "gauge", "Most tasks that wait in the broker for one lane of a queue: `dispatch.window`; of quick ones up to 8 times as many."
)
OPEN_DELIVERIES = Metric("taskyard_deliveries_open", "gauge", f"Deliveries that are neither delivered nor dead, counted up to {COUNT_LIMIT:,}.", ("status",))
WORKERS = Metric("taskyard_workers_alive", "gauge", "Workers that beat within `dispatch.worker_silence`.")
SLOTS = Metric("taskyard_worker_slots", "gauge", "Tasks that the live workers can run at once.", ("lane",))
STUCK = Metric(
    "taskyard_workers_stuck",
    "gauge",
    "Workers that beat, and claim and end nothing although tasks wait for their free slots. Only a restart of theirs helps.",
)
STUCK_SECONDS = Metric(
    "taskyard_worker_stuck_seconds", "gauge", "The longest time since such a worker last claimed a task or recorded an end. 0: none is stuck."
)
DISPATCHER = Metric("taskyard_dispatcher_alive", "gauge", "1 if a dispatcher used the database lately.")
BROKER = Metric("taskyard_broker_up", "gauge", "1 if a live dispatcher reached the broker at its last look, at most some seconds ago.")

GAUGES = (TASKS, CAPPED, OLDEST, PARKED, PAUSED, WINDOW_FILL, WINDOW_SIZE, OPEN_DELIVERIES, WORKERS, SLOTS, STUCK, STUCK_SECONDS, DISPATCHER, BROKER)


@dataclass(frozen=True, slots=True)
class Roles:
    """Who is at work."""

    workers: list[LiveWorker]
    slots: dict[str, int]
    queues: frozenset[str]
    dispatcher: bool
    broker: BrokerState


_WORKERS = text("SELECT queues, slots FROM workers WHERE beat_at > now() - :silence * interval '1 second'")
# By its connections, which tell when they were last used: a dispatcher of the version before keeps no row. Who may not see that of another
# database user sees NULL, and takes a connection for a sign of life.
_DISPATCHER = text(
    """
SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()
  AND COALESCE(state_change > now() - :pause * interval '1 second', true))"""
)


def roles(connection: Connection, settings: Settings) -> Roles:
    """Which roles are at work, wherever they run."""
    pause = dispatchers.longest_silence(settings)
    workers = connection.execute(_WORKERS, {"silence": settings.dispatch.worker_silence}).all()
    dispatcher = bool(connection.execute(_DISPATCHER, {"name": f"{APPLICATION}-dispatcher", "pause": pause}).scalar())
    slots = {lane: sum(int(worker.slots.get(lane, 0)) for worker in workers) for lane in ("sync", "async")}
    served = frozenset(queue for worker in workers for queue in worker.queues)
    return Roles(live(connection, settings), slots, served, dispatcher, dispatchers.broker(connection, settings))


_OPEN_DELIVERIES = text(
    "SELECT status, count(*) AS n FROM (SELECT status FROM deliveries WHERE next_try_at IS NOT NULL ORDER BY next_try_at LIMIT :cap) AS first GROUP BY status"
)


class Samples(dict[Key, float]):
    """Values by metric and labels."""

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to a sample."""
        self[metric.name, labels] = self.get((metric.name, labels), 0.0) + value

    def most(self, metric: Metric, value: float, *labels: str) -> None:
        """Keep the larger value."""
        self[metric.name, labels] = max(self.get((metric.name, labels), 0.0), value)


def read(connection: Connection, settings: Settings, tally: Tally) -> Samples:
    """All gauges. ``tally`` knows what has a name of its own in a label."""
    samples = Samples()
    at_work = roles(connection, settings)
    tally.learn(at_work.queues)
    samples.add(WORKERS, len(at_work.workers))
    stuck = [worker for worker in at_work.workers if worker.stuck]
    samples.add(STUCK, len(stuck))
    samples.add(STUCK_SECONDS, longest(stuck))
    samples.add(DISPATCHER, at_work.dispatcher)
    samples.add(BROKER, at_work.broker.up)
    samples.add(WINDOW_SIZE, settings.dispatch.window)
    for lane, slots in at_work.slots.items():
        samples.add(SLOTS, slots, lane)
    for status in ("pending", "queued", "sending"):
        samples.add(OPEN_DELIVERIES, 0, status)
    for row in connection.execute(_OPEN_DELIVERIES, {"cap": COUNT_LIMIT}):
        samples.add(OPEN_DELIVERIES, row.n, row.status)
    _read_queues(connection, tally, samples)
    return samples


def scrape(connection: Connection, settings: Settings, tally: Tally) -> Samples:
    """All that the database knows: the gauges, and the counters of all processes."""
    samples = read(connection, settings, tally)
    samples.update(tally.zeros() | metrics.read(connection))
    return samples


def _read_queues(connection: Connection, tally: Tally, samples: Samples) -> None:
    known = tally.queues()
    for queue in known:
        for metric in (OLDEST, PAUSED, CAPPED):
            samples.add(metric, 0, queue)
        for lane in ("sync", "async"):
            samples.add(WINDOW_FILL, 0, queue, lane)
    for type_, queue in tally.own_queues.items():
        samples.add(PARKED, 0, type_, queue)
    for row in backlog.parked(connection):
        samples.add(PARKED, row.n, tally.name("type", row.type), tally.name("queue", row.queue))
    for row in connection.execute(text("SELECT name FROM queues WHERE paused_at IS NOT NULL")):
        samples.most(PAUSED, 1, tally.name("queue", row.name))
    for row in backlog.live_counts(connection, known):
        queue = tally.name("queue", row.queue)
        samples.add(TASKS, row.n, tally.name("type", row.type), queue, row.status)
        samples.most(CAPPED, row.capped, queue)
        if row.status == "queued":
            samples.add(WINDOW_FILL, row.n, queue, row.lane)
    for name, seconds in backlog.oldest_ready(connection, known).items():
        samples.most(OLDEST, seconds, tally.name("queue", name))
