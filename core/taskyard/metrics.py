"""What is counted, and how the counts of all processes come together.

Postgres holds the counters, as it holds everything: so one scrape of any web process shows the whole installation. A process
adds up what it sees in memory (:class:`Tally`) and brings that to the table ``counters`` every few seconds, in one statement
and a transaction of its own: as part of another one, its row locks would be held while that one waits for tasks. No task pays
for a statement.

A process that is killed loses what it counted since. A count is never brought twice: when a flush's answer is lost, so are its
counts. The truth of single tasks is in their rows and events; these numbers are for rates and alerts.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog
from sqlalchemy import Connection, Engine, RowMapping, text

from taskyard.database_errors import driver_words, was_rolled_back
from taskyard.plugins import Registry
from taskyard.storable import to_json
from taskyard.tables import TERMINAL

log = structlog.get_logger(__name__)

#: Seconds between two flushes of a process, at least.
FLUSH_EVERY = 2.0
#: What a label says in place of a value that is no installed type or notifier, or no known queue: a client can name any queue.
OTHER = "other"
INFINITY = "+Inf"

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric as it is exposed. A label named ``type``, ``queue`` or ``notifier`` is bounded by what is known."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    bounds: tuple[str, ...] = field(init=False)
    bucket_name: str = field(init=False)
    sum_name: str = field(init=False)

    def __post_init__(self) -> None:
        # Once, and not at each of thousands of observations a second.
        object.__setattr__(self, "bounds", (*map(str, self.buckets), INFINITY))
        object.__setattr__(self, "bucket_name", f"{self.name}_bucket")
        object.__setattr__(self, "sum_name", f"{self.name}_sum")


_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_LINE = ("type", "queue")

SUBMITTED = Metric("taskyard_tasks_submitted_total", "counter", "Tasks that were submitted, by clients and by handlers.", _LINE)
FINISHED = Metric("taskyard_tasks_finished_total", "counter", "Times that a task entered a terminal status.", (*_LINE, "status"))
WAIT = Metric("taskyard_task_wait_seconds", "histogram", "From the moment that a task is ready (submitted, or its `run_at`) to its first start.", _LINE, _WAITS)
RUN = Metric("taskyard_task_run_seconds", "histogram", "From a run's claim to its end, however it ended.", _LINE, _WAITS)
LOST = Metric("taskyard_tasks_lost_total", "counter", "Runs whose worker, or whose process in it, was lost.")
SWEPT = Metric("taskyard_tasks_swept_total", "counter", "Tasks that were handed to the broker again, because nobody had claimed them.")
MESSAGES = Metric("taskyard_messages_total", "counter", "Messages for tasks that the broker has taken: each is for one task, or for many quick ones.")
DIRECT_HINTS = Metric("taskyard_direct_hints_total", "counter", "Tasks of which a web process has told workers itself, without a dispatcher.")
STALE = Metric(
    "taskyard_stale_writes_total", "counter", "Writes that the fence refused: somebody else has the task by now, or the write came twice.", ("verb",)
)
PURGED = Metric("taskyard_tasks_purged_total", "counter", "Ended tasks that were deleted, because `[retention]` says so.", ("status",))
DELIVERIES = Metric("taskyard_deliveries_total", "counter", "Tries of deliveries, by how they ended.", ("notifier", "outcome"))
BLOCKED = Metric(
    "taskyard_async_blocked_seconds_total", "counter", "Seconds for which handlers blocked the event loop of all async tasks of their worker.", ("type",)
)

#: What is in the table ``counters``.
SHARED = (SUBMITTED, FINISHED, WAIT, RUN, LOST, SWEPT, MESSAGES, DIRECT_HINTS, STALE, PURGED, DELIVERIES, BLOCKED)
STALE_VERBS = ("beat", "deliver", "finish", "log", "progress")
DELIVERY_OUTCOMES = ("delivered", "failed", "dead")
#: Up to this many pairs of a type and a queue start at zero; beyond it, only each type in its own queue does.
MOST_PAIRS = 500


class Tally:
    """What one process has counted and not yet flushed. Any thread may count.

    ``types`` and ``notifiers`` are the installed ones; ``queues`` those that handlers name or this process serves. A flush adds
    the queues that workers serve.
    """

    def __init__(self, types: Iterable[str] = (), queues: Iterable[str] = (), notifiers: Iterable[str] = ()) -> None:
        self._known = {"type": frozenset(types), "queue": frozenset(queues), "notifier": frozenset(notifiers)}
        #: The queue of each installed type.
        self.own_queues: Mapping[str, str] = {}
        self._deltas: dict[Key, float] = {}
        # Labels that are known to stay as they are: no more than there are series.
        self._same: set[tuple[Metric, tuple[str, ...]]] = set()
        self._lock = threading.Lock()
        self._flushed_at = float("-inf")

    @classmethod
    def of(cls, registry: Registry, queues: Iterable[str] = ()) -> Tally:
        """A tally that knows what is installed. Its first flush makes the series of all that at zero."""
        own_queues = {type_: handler.queue for type_, handler in registry.handlers.items()}
        tally = cls(registry.names, {*own_queues.values(), *queues}, registry.notifiers)
        tally.own_queues = own_queues
        tally.restore(tally.zeros())
        return tally

    def count(self, metric: Metric, *values: str, by: float = 1.0) -> None:
        """Add to a counter. ``values`` are its labels' values, in their order."""
        if by:
            key = metric.name, self.bounded(metric, values)
            with self._lock:
                self._deltas[key] = self._deltas.get(key, 0.0) + by

    def observe(self, metric: Metric, value: float, *values: str) -> None:
        """Add one observation to a histogram."""
        self.observe_each(metric, ((value, values),))

    def observe_each(self, metric: Metric, observed: Iterable[tuple[float, tuple[str, ...]]]) -> None:
        """Add observations to a histogram, each with its labels' values."""
        with self._lock:
            for value, values in observed:
                labels = self.bounded(metric, values)
                bucket = metric.bucket_name, (*labels, metric.bounds[bisect_left(metric.buckets, value)])
                total = metric.sum_name, labels
                self._deltas[bucket] = self._deltas.get(bucket, 0.0) + 1.0
                # The database's clock may be set back while a task runs.
                self._deltas[total] = self._deltas.get(total, 0.0) + max(0.0, value)

    def bounded(self, metric: Metric, values: tuple[str, ...]) -> tuple[str, ...]:
        """The labels' values, with OTHER for what is not known."""
        if (metric, values) in self._same:
            return values
        bounded = tuple(self.name(label, value) for label, value in zip(metric.labels, values, strict=True))
        if bounded == values and OTHER not in values:
            self._same.add((metric, values))
        return bounded

    def name(self, label: str, value: str) -> str:
        """A value of one label, or OTHER."""
        known = self._known.get(label)
        return value if known is None or value in known else OTHER

    def queues(self) -> frozenset[str]:
        """The queues that have a name of their own in labels."""
        return self._known["queue"]

    def learn(self, queues: Iterable[str]) -> None:
        """More queues are known: workers serve them."""
        if new := set(queues) - self._known["queue"]:
            self._known["queue"] |= new
            if self.own_queues:
                self.restore(self.zeros())

    def zeros(self) -> dict[Key, float]:
        """Zero for each series that can be foreseen."""
        return dict.fromkeys(known_series(self.own_queues, self.queues(), self._known["notifier"]), 0.0)

    def take(self) -> dict[Key, float]:
        """All that was counted; from now on it is the caller's."""
        with self._lock:
            deltas, self._deltas = self._deltas, {}
        return deltas

    def peek(self) -> dict[Key, float]:
        """All that was counted and not taken."""
        with self._lock:
            return dict(self._deltas)

    def restore(self, deltas: Mapping[Key, float]) -> None:
        """Give back what was taken and surely not written."""
        with self._lock:
            for key, delta in deltas.items():
                self._deltas[key] = self._deltas.get(key, 0.0) + delta

    def is_due(self, now: float) -> bool:
        """Is there something to flush, and was the last flush long enough ago? A first flush is always due."""
        return now - self._flushed_at >= FLUSH_EVERY and (bool(self._deltas) or self._flushed_at == float("-inf"))

    def flushing(self, now: float) -> None:
        """A flush begins."""
        self._flushed_at = now


def known_series(own_queues: Mapping[str, str], queues: Collection[str], notifiers: Iterable[str]) -> Iterator[Key]:
    """The series that can be foreseen: Prometheus sees no increase in a counter that is born at 1, so they begin at 0.

    ``own_queues`` has the queue of each installed type. Any client may name another queue, so the known ``queues`` count too, for counters,
    as long as that makes no more than :data:`MOST_PAIRS`.
    """
    own = list(own_queues.items())
    pairs = [(type_, queue) for type_ in own_queues for queue in sorted({*queues, OTHER})]
    for pair in pairs if len(pairs) <= MOST_PAIRS else own:
        yield SUBMITTED.name, pair
        yield from ((FINISHED.name, (*pair, status)) for status in TERMINAL)
    yield from ((metric.bucket_name, (*pair, INFINITY)) for metric in (WAIT, RUN) for pair in own)
    yield from ((BLOCKED.name, (type_,)) for type_ in own_queues)
    yield from ((STALE.name, (verb,)) for verb in STALE_VERBS)
    yield from ((PURGED.name, (status,)) for status in TERMINAL)
    yield from ((DELIVERIES.name, (notifier, outcome)) for notifier in notifiers for outcome in DELIVERY_OUTCOMES)


# --- what the rows of the verbs count as ---


def count_submitted(tally: Tally, row: RowMapping) -> None:
    """A row of lifecycle.submit, once it is committed."""
    tally.count(SUBMITTED, row["type"], row["queue"])


def count_claimed(tally: Tally, rows: Iterable[RowMapping]) -> None:
    """Rows of lifecycle.claim that are this worker's, once they are committed."""
    tally.observe_each(WAIT, [(row["waited"], (row["type"], row["queue"])) for row in rows if row["waited"] is not None])


def count_ran(tally: Tally, rows: Collection[RowMapping]) -> None:
    """Rows of lifecycle.finish, once they are committed."""
    tally.observe_each(RUN, [(row["ran"], (row["type"], row["queue"])) for row in rows])
    count_ended(tally, *rows)


def count_ended(tally: Tally, *rows: RowMapping) -> None:
    """Rows that a verb has just moved, once they are committed: those count that are a task's end."""
    ends = Counter((row["type"], row["queue"], row["status"]) for row in rows if row["status"] in TERMINAL)
    for labels, count in ends.items():
        tally.count(FINISHED, *labels, by=count)


# --- the table ---

# In one order, so that two flushes do not wait for each other.
_ADD = text(
    """
WITH added AS (
  INSERT INTO counters AS c (name, labels, value)
  SELECT name, labels, value FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS s(name text, labels text[], value float8)
  ORDER BY name, labels
  ON CONFLICT (name, labels) DO UPDATE SET value = c.value + EXCLUDED.value WHERE EXCLUDED.value <> 0
)
SELECT DISTINCT unnest(queues) FROM workers"""
)


def flush(connection: Connection, tally: Tally) -> None:
    """Bring what was counted to the table, by one statement that commits itself: a process that is frozen in the middle must not keep
    the rows locked that all others want. ``connection`` is fresh, in no transaction.

    Raises:
        Exception: what the database raised. The counts are kept for the next flush only if the database said no: without an answer
            they may have arrived.
    """
    tally.flushing(time.monotonic())
    autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
    deltas = tally.take()
    rows = [{"name": name, "labels": labels, "value": value} for (name, labels), value in deltas.items()]
    try:
        served = autocommit.execute(_ADD, {"rows": to_json(rows)}).scalars().all()
    except Exception as error:
        # Adding zero twice is harmless.
        tally.restore(deltas if was_rolled_back(error) else dict.fromkeys(deltas, 0.0))
        raise
    tally.learn(served)


def flush_if_due(engine: Engine, tally: Tally, *, last: bool = False) -> None:
    """Flush now and then; ``last`` says that the process ends. Never fails: what is watched must not suffer from being watched."""
    now = time.monotonic()
    if not (last or tally.is_due(now)):
        return
    tally.flushing(now)
    try:
        with engine.connect() as connection:
            flush(connection, tally)
    except Exception as error:
        log.warning("metrics.not_flushed", error=driver_words(error))


def read(connection: Connection) -> dict[Key, float]:
    """All that was ever flushed."""
    rows = connection.execute(text("SELECT name, labels, value FROM counters"))
    return {(row.name, tuple(row.labels)): row.value for row in rows}
