"""The dispatcher: moves what is ready from the line in Postgres to a short window in the broker, and finds what was lost.

It wakes on NOTIFY and on a tick. Any number of dispatchers may run: every statement skips what another one has locked.
Whatever dies between commit and publish leaves queued rows without a message; the next dispatch after ``sweep_after`` sends
them again.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, RowMapping, text

from taskyard import audit, broker_queues, clock, deliveries, digests, failpoints, idempotency, known_types, lifecycle, metrics, retention, system
from taskyard.backoff import Backoff
from taskyard.channels import HINTED, READY, tell_lines
from taskyard.database_errors import LOCKED, driver_words, is_mistake, is_outage, sqlstate_of
from taskyard.deliveries import Due
from taskyard.dispatch.bundles import crew_of, pack, reach
from taskyard.dispatch.chores import Chores
from taskyard.dispatch.gathering import Gathering
from taskyard.dispatch.look import Outlook, lines, look, served_queues, workers
from taskyard.dispatch.open_lines import OpenLines
from taskyard.dispatch.overdue import Overdue
from taskyard.dispatch.presence import Presence
from taskyard.dispatch.publisher import BrokerAway, Publisher, QueueRefused
from taskyard.dispatch.refusals import RefusedQueues
from taskyard.dispatch.skips import Skips
from taskyard.dispatch.window import Window
from taskyard.lifecycle import Hint
from taskyard.listener import Listener
from taskyard.metrics import Tally
from taskyard.records import LANES
from taskyard.retrying import transaction
from taskyard.routes import sync_routes
from taskyard.settings import Settings
from taskyard.unclaimed import DELIVERIES

log = structlog.get_logger(__name__)

#: A queued row this many sweeps old is sent again even while the broker's queue is not empty.
PATIENCE = 10
#: Seconds until an absent broker is tried again, at first and at most.
AWAY = (0.4, 5.0)
#: Rows that one commit of a chore moves, and commits of it a tick. More would hold up the dispatch; the next tick comes at once.
BATCH, BATCHES = 1000, 20
#: Ended tasks that one commit deletes, and seconds that a tick spends on them at most: dispatch waits meanwhile.
PURGE_BATCH, PURGE_FOR = 200, 0.05
PURGE_TIMEOUT = text("SET LOCAL statement_timeout = '2s'")
#: How long a reap waits for a row that somebody keeps locked, and seconds until it is tried again.
REAP_TIMEOUT, REAP_AGAIN = text("SET LOCAL lock_timeout = '2s'"), 5.0
#: Seconds between two purges, and after one that left something.
PURGE_EVERY, PURGE_AGAIN = 10.0, 0.25
#: Seconds between two looks for stalled queues and failed plugins.
LOOK_EVERY = 5.0
#: Seconds between two looks for unused queues of the broker, and queues that one look deletes at most.
TIDY_EVERY, TIDY_BATCH = 60.0, 20
#: Ticks for which deliveries are looked at often after one was found that waits for another.
CHAINED_FOR = 2
#: Full windows are looked at again so many times a tick: more often while workers empty them in between.
REFILLS = (20, 160)


class Filled(enum.Enum):
    """What filling a line's window came to."""

    NOTHING = "nothing was ready"
    ALL = "all that was ready is in the broker"
    SKIPPED = "a ready task was locked by another transaction"
    FULL = "more may be ready than the window, or an absent broker, takes"


class Dispatcher:
    """One dispatcher's loop. ``run`` returns after ``stop`` was called, from a signal handler or another thread."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        publisher: Publisher,
        tally: Tally | None = None,
        plugins: Mapping[str, str | None] | None = None,
        owners: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._publisher = publisher
        self._tally = tally or Tally()
        self._listener = Listener(engine, READY)
        self._windows: dict[tuple[str, str], Window] = {}
        self._full: set[tuple[str, str]] = set()
        self._refill_at = float("inf")
        self._refills = REFILLS[0]
        self._skips = Skips(settings.dispatch.tick / REFILLS[0])
        self._open = OpenLines()
        self._workers: Sequence[Mapping[str, Any]] = ()
        self._served: frozenset[str] = frozenset()
        self._stopping = False
        self._gathering = Gathering()
        self._handed = 0
        self._wake_in, self._wake_out = socket.socketpair()
        self._presence = Presence(engine, publisher)
        self._broker_back_at = 0.0
        self._broker_backoff = Backoff(*AWAY)
        self._refused = RefusedQueues()
        self._plugins = plugins or {}
        self._owners = owners or {}
        self._chained_until = 0.0
        self._look_at = 0.0
        self._tidy_at = 0.0
        self._steady_since = float("inf")
        self._behind = False
        self._purge_at = 0.0
        self._reap_at = 0.0
        self._round: retention.Round | None = None
        self._overdue = Overdue(settings)
        self._chores = Chores(self._purge, self._fold_digests, self._tell_operators, self._delete_unused_queues)

    def stop(self) -> None:
        """Finish the pass that is under way, then return from ``run``. Safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # ``run`` has returned already
            self._wake_out.send(b"x")

    def run(self) -> None:
        """Work until stopped. Outages of the database or the broker are waited out."""
        failures = 0
        synced = False
        log.info("dispatcher.started", window=self._settings.dispatch.window)
        while not self._stopping:
            try:
                if not synced:
                    transaction(self._engine, sync_routes, self._settings.routes)
                    transaction(self._engine, system.note_plugins, self._plugins)
                    transaction(self._engine, known_types.note, self._owners)
                    synced = True
                self._listener.connect()
                if failures or self._steady_since == float("inf"):
                    self._steady_since = time.monotonic()
                wait = self.tick()
                failures = 0
                self._rest(wait)
            except Exception as error:
                if not is_outage(error) or is_mistake(error):
                    log.exception("dispatcher.error")
                failures += 1
                wait = min(0.1 * 2**failures, 5.0)
                log.warning("dispatcher.waits", seconds=wait, error=driver_words(error))
                self._pause(wait)
        metrics.flush_if_due(self._engine, self._tally, last=True)
        self._presence.leave()
        self._listener.close()
        self._publisher.close()
        self._wake_in.close()
        self._wake_out.close()
        log.info("dispatcher.stopped")

    def tick(self) -> float:
        """Look at everything once; answers the seconds until the next look."""
        outlook = self._housekeep()
        self._know_workers(outlook.workers)
        deliveries_filled = self._dispatch_deliveries(outlook)
        waiting = transaction(self._engine, lines, self._served)
        self._full.clear()
        self._skips.clear()
        for queue, lane in waiting:
            if self._stopping:
                break
            self._dispatch_line(queue, lane)
        self._plan_refill()
        self._tell_open_lines(waiting, outlook.paused)
        self._tell_presence()
        metrics.flush_if_due(self._engine, self._tally)
        wait = 0.0 if self._behind else outlook.wait(self._settings.dispatch.tick)
        soon, now = self._settings.dispatch.tick / REFILLS[0], time.monotonic()
        if deliveries_filled is Filled.FULL:
            wait = min(wait, soon)
        # A purge that failed is overdue until its turn as a chore comes.
        return max(min(wait, max(soon, self._purge_at - now)), self._broker_back_at - now)

    def _tell_open_lines(self, waiting: Collection[tuple[str, str]], paused: Collection[str]) -> None:
        """Lines in which nothing waits are open, those that nobody serves are not; what is told of the others is known by their dispatch."""
        served = {(queue, lane) for queue in self._served.difference(paused) for lane in LANES}
        self._open.keep_only(served)
        for line in served.difference(waiting):
            self._open.set(line, True)
        if news := self._open.news(time.monotonic()):
            transaction(self._engine, tell_lines, news)

    def _tell_presence(self) -> None:
        """Look now and then whether the broker answers, even with nothing to send, and say so."""
        if not self._presence.is_due():
            return
        if time.monotonic() >= self._broker_back_at:
            try:
                self._presence.probe()
                self._broker_answered()
            except BrokerAway as error:
                self._broker_is_away(error)
        self._presence.beat()

    def _pause(self, seconds: float) -> None:
        """Do nothing for so long, or until a stop."""
        select.select([self._wake_in.fileno()], [], [], seconds)

    def _rest(self, seconds: float) -> None:
        """Sleep. Where that took far longer than it should, this process or the machine stood still, and perhaps workers with it."""
        due = clock.now() + seconds
        self._sleep(seconds)
        if (late := clock.now() - due) > self._settings.dispatch.worker_silence:
            log.warning("dispatcher.stood_still", seconds=round(late, 1), consequence="workers get the time to beat before one counts as lost")
            self._steady_since = time.monotonic()

    def _sleep(self, seconds: float) -> None:
        """Wait for a notification, a stop or the time; meanwhile dispatch what notifications name, and fill windows again."""
        until = time.monotonic() + seconds
        while not self._stopping and (now := time.monotonic()) < until:
            if now >= self._refill_at:
                self._refill()
                continue
            if skipped := self._skips.due(now):
                for queue, lane in skipped:
                    self._dispatch_line(queue, lane)
                continue
            readers = [self._wake_in.fileno()]
            if (descriptor := self._listener.fileno()) is not None:
                readers.append(descriptor)
            ready, _, _ = select.select(readers, [], [], min(until, self._refill_at, self._skips.next_at()) - now)
            if not ready:
                continue
            self._gathering.wait()
            handed = self._handed
            filled = self._heed()
            self._gathering.found(self._handed - handed)
            if Filled.NOTHING in filled:
                return

    def _refill(self) -> None:
        """Look at the full windows again: the more often, the faster workers empty them."""
        full, self._full = self._full, set()
        for queue, lane in full:
            if self._stopping:
                return
            self._dispatch_line(queue, lane)
        drained = any(self._windows[line].drained for line in full & self._windows.keys())
        slowest, fastest = REFILLS
        self._refills = min(fastest, self._refills * 2) if drained else max(slowest, self._refills // 2)
        self._plan_refill()

    def _plan_refill(self) -> None:
        now = time.monotonic()
        self._refill_at = max(now + self._settings.dispatch.tick / self._refills, self._broker_back_at) if self._full else float("inf")

    def _heed(self) -> list[Filled]:
        """Dispatch what notifications name. NOTHING: look at everything, for what is named is planned, or the connection broke."""
        try:
            taken = self._listener.take()
            announced = {payload for payload in taken if not payload.startswith(HINTED)}
            filled = [self._dispatch_line(queue, lane) for queue, lane in self._served_lines(announced)]
            # That these have nothing ready is what is to be expected, and no reason to look at everything.
            for queue, lane in self._served_lines({payload.removeprefix(HINTED) for payload in taken} - announced):
                self._dispatch_line(queue, lane)
            if self._full and self._refill_at == float("inf"):
                self._plan_refill()
            return filled
        except Exception as error:
            log.warning("dispatcher.listen_failed", error=driver_words(error))
            self._listener.close()
            return [Filled.NOTHING]

    def _served_lines(self, payloads: Iterable[str]) -> list[tuple[str, str]]:
        """The announced lines that a worker serves. The others wait in the database: any client can name a queue that nobody serves."""
        announced = [(queue, lane) for queue, _, lane in (payload.rpartition("/") for payload in sorted(payloads))]
        if any(queue not in self._served for queue, _ in announced):
            # A worker that has just registered announces its lines, too.
            self._know_workers(transaction(self._engine, workers))
        return [line for line in announced if line[0] in self._served]

    def _know_workers(self, registered: Sequence[Mapping[str, Any]]) -> None:
        self._workers, self._served = registered, served_queues(registered)

    def _housekeep(self) -> Outlook:
        outlook = transaction(self._engine, look, self._settings.dispatch.worker_silence)
        lost = self._reap_silent() if outlook.silent and self._is_steady() else []
        failpoints.hit("housekeep.committed")
        if self._overdue.due and self._is_steady():
            lost = [*lost, *transaction(self._engine, self._overdue.reap)]
        self._tell([], lost)
        expired = outlook.expiring and self._batches(lifecycle.expire)
        promoted = outlook.run_in is not None and outlook.run_in <= 0 and self._batches(lifecycle.promote)
        self._behind = expired or promoted
        self._chores.do()
        return outlook

    def _reap_silent(self) -> Sequence[RowMapping]:
        """Give up silent workers. A row of theirs that somebody keeps locked puts that off, and holds up no dispatch."""
        if time.monotonic() < self._reap_at:
            return []
        try:
            return transaction(self._engine, self._reap)
        except Exception as error:
            if sqlstate_of(error) != LOCKED:
                raise
            self._reap_at = time.monotonic() + REAP_AGAIN
            log.warning("dispatcher.reap_put_off", error=driver_words(error), seconds=REAP_AGAIN)
            return []

    def _reap(self, connection: Connection) -> Sequence[RowMapping]:
        connection.execute(REAP_TIMEOUT)
        return lifecycle.reap(connection, self._settings.dispatch.worker_silence, self._settings.dispatch.max_lost)

    def _is_steady(self) -> bool:
        """After an outage of the database, or a standstill, all workers seem silent, and ends wait: they get the time to beat, and to record these."""
        return time.monotonic() - self._steady_since > self._settings.dispatch.worker_silence

    def _fold_digests(self) -> None:
        """Fold what waits for a digest."""
        made = transaction(self._engine, digests.fold)
        for route, count in made.items():
            log.info("digest.made", route=route, count=count)

    def _tell_operators(self) -> None:
        """See now and then whether a queue is stalled or a plugin has failed."""
        if (now := time.monotonic()) < self._look_at:
            return
        self._look_at = now + min(LOOK_EVERY, self._settings.dispatch.stalled_after / 4)
        news = transaction(self._engine, system.look, self._settings.dispatch.stalled_after)
        for one in news:
            log.warning(one.event, **one.data)

    def _delete_unused_queues(self) -> None:
        """Delete some of the broker's queues that nobody has needed for a while. What the broker refuses, or is away for, is tried again later."""
        now, unused_after = time.monotonic(), self._settings.broker.unused_after
        if now < max(self._tidy_at, self._broker_back_at):
            return
        self._tidy_at = now + min(TIDY_EVERY, unused_after / 2)
        transaction(self._engine, broker_queues.mark_unused)
        unused = transaction(self._engine, broker_queues.unused, unused_after, TIDY_BATCH)
        for queue in unused:
            try:
                gone = [self._publisher.remove(queue, lane) for lane in LANES]
            except BrokerAway as error:
                log.info("dispatcher.queue_not_deleted", queue=queue, error=str(error))
                return
            if all(gone):
                transaction(self._engine, broker_queues.forget, queue)
                log.info("dispatcher.queue_deleted", queue=queue, unused_seconds=unused_after)
        if len(unused) == TIDY_BATCH:
            self._tidy_at = now

    def _purge(self) -> None:
        """Forget a batch of the idempotency keys whose time has passed, and tasks that are kept no longer."""
        if (now := time.monotonic()) < self._purge_at:
            return
        self._purge_at = now + PURGE_EVERY
        gone = transaction(self._engine, self._purge_others)
        if not self._purge_tasks(now + PURGE_FOR) or gone == BATCH:
            self._purge_at = now + PURGE_AGAIN

    def _purge_others(self, connection: Connection) -> int:
        gone, kept = idempotency.purge(connection, self._settings.api.idempotency_period, BATCH), self._settings.retention
        if kept.system is not None:
            gone = max(gone, retention.purge_system(connection, kept.system, BATCH))
        if kept.audit is not None:
            gone = max(gone, audit.purge(connection, kept.audit, BATCH))
        return gone

    def _purge_tasks(self, until: float) -> bool:
        """Delete what retention does not keep, a page and a commit at a time, for a moment. False: there is more to look at."""
        if self._round is None:
            with self._engine.connect() as connection:
                self._round = retention.Round(connection, self._settings.retention.model_dump())
        deleted: Counter[str] = Counter()
        while not self._round.done and not self._stopping and time.monotonic() < until:
            status, gone = transaction(self._engine, _purge_page, self._round)
            deleted[status] += gone
        for status, gone in (+deleted).items():
            self._tally.count(metrics.PURGED, status, by=gone)
            log.info("tasks.purged", status=status, count=gone)
        done = self._round.done
        self._round = None if done else self._round
        return done

    def _batches(self, verb: Callable[[Connection, int], Sequence[Any]]) -> bool:
        """Do a chore a batch and a commit at a time. True: there may be more of it than one tick should do."""
        for _ in range(BATCHES):
            moved = transaction(self._engine, verb, BATCH)
            failpoints.hit("housekeep.committed")
            if verb is lifecycle.expire:
                self._tell(moved, [])
            if len(moved) < BATCH or self._stopping:
                return False
        return True

    def _tell(self, expired: Sequence[RowMapping], lost: Sequence[RowMapping]) -> None:
        """Log and count what a commit has moved."""
        if expired:
            log.info("tasks.expired", count=len(expired))
        for row in lost:
            log.warning("task.lost", task_id=str(row["id"]), type=row["type"], attempt=row["attempt"], fence=row["fence"], status=row["status"])
            self._tally.count(metrics.LOST)
        for row in [*expired, *lost]:
            metrics.count_ended(self._tally, row)

    def _dispatch_line(self, queue: str, lane: str) -> Filled:
        """Fill one line's window, and remember whether to look at it again before the next tick."""
        filled = self._fill(queue, lane)
        self._skips.note((queue, lane), filled is Filled.SKIPPED, time.monotonic())
        if filled is Filled.FULL:
            self._full.add((queue, lane))
        else:
            self._full.discard((queue, lane))
        self._open_or_close((queue, lane), filled)
        return filled

    def _open_or_close(self, line: tuple[str, str], filled: Filled) -> None:
        """Is a line's backlog so short that direct hints are worth sending? Between a quarter and a half of its window, nothing changes."""
        window = self._windows.get(line)
        if filled is Filled.FULL or window is None or window.waiting > window.size // 2:
            self._open.set(line, False)
        elif filled is Filled.NOTHING and window.waiting <= window.size // 4:
            self._open.set(line, True)

    def _fill(self, queue: str, lane: str) -> Filled:
        if time.monotonic() < self._broker_back_at or self._refused.holds((queue, lane)):
            return Filled.FULL
        try:
            window = self._measure(queue, lane)
            if not window.worth_filling:
                return Filled.FULL
            dispatch = self._settings.dispatch
            stale = dispatch.sweep_after * (1 if window.empty else PATIENCE)
            asked = window.room
            dispatched = transaction(self._engine, lifecycle.dispatch, queue, lane, asked, stale)
            if not (hints := dispatched.hints):
                return Filled.SKIPPED if dispatched.skipped else Filled.NOTHING
            self._handed += len(hints)
            failpoints.hit("dispatch.committed")
            crew = crew_of(self._workers, queue, lane)
            bundles = pack(hints, crew)
            window.used(map(len, bundles))
            window.widen(reach(hints, crew, dispatch.window))
            self._publish(queue, lane, bundles)
            if len(hints) == asked:
                return Filled.FULL
            return Filled.SKIPPED if dispatched.skipped else Filled.ALL
        except QueueRefused as error:
            self._is_refused((queue, lane), error)
            return Filled.FULL
        except BrokerAway as error:
            self._broker_is_away(error)
            return Filled.FULL

    def _publish(self, queue: str, lane: str, bundles: list[list[Hint]]) -> None:
        try:
            self._publisher.publish(queue, lane, bundles)
        except BrokerAway as error:
            transaction(self._engine, lifecycle.withdraw, [hint.id for bundle in error.unpublished for hint in bundle])
            failpoints.hit("withdraw.committed")
            raise
        self._is_taken((queue, lane))
        self._tally.count(metrics.MESSAGES, by=len(bundles))
        if swept := [str(hint.id) for bundle in bundles for hint in bundle if hint.swept]:
            self._tally.count(metrics.SWEPT, by=len(swept))
            log.warning("tasks.swept", queue=queue, lane=lane, count=len(swept), task_ids=swept[:10])

    def _measure(self, queue: str, lane: str) -> Window:
        """The line's room. The broker is asked only when half of what is known is used up, or it is a tick old."""
        window = self._windows.setdefault((queue, lane), Window(self._settings.dispatch.window))
        now = time.monotonic()
        if not window.worth_filling or now - window.measured_at > self._settings.dispatch.tick:
            window.measured(self._publisher.depth(queue, lane), now)
        return window

    def _dispatch_deliveries(self, outlook: Outlook) -> Filled:
        """Fill the window of notifications. A dead receiver holds them up, so the broker gets no more of them than of tasks."""
        if outlook.try_in is None or outlook.try_in > 0:
            return Filled.FULL if self._is_chained(()) else Filled.NOTHING
        if time.monotonic() < self._broker_back_at or self._refused.holds(DELIVERIES):
            return Filled.FULL
        try:
            depth = self._publisher.delivery_depth()
            room = self._settings.dispatch.window - depth
            if room <= 0:
                return Filled.FULL
            lease = self._settings.dispatch.sweep_after * (PATIENCE if depth else 1)
            due = transaction(self._engine, deliveries.dispatch, room, lease, self._settings.deliveries.max_attempts)
            failpoints.hit("delivery.dispatched")
            for spent in [one for one in due if one.dead]:
                self._tally.count(metrics.DELIVERIES, spent.notifier, "dead")
                log.warning("delivery.dead", delivery_id=spent.id, notifier=spent.notifier)
            self._publish_deliveries([one for one in due if not one.dead and not one.waits])
            return Filled.FULL if len(due) == room or self._is_chained(due) else Filled.ALL
        except QueueRefused as error:
            self._is_refused(DELIVERIES, error)
            return Filled.FULL
        except BrokerAway as error:
            self._broker_is_away(error)
            return Filled.FULL

    def _is_chained(self, due: Sequence[Due]) -> bool:
        """Are deliveries waiting for those before them? Then the next one may be due any moment: its turn is not announced."""
        now = time.monotonic()
        if any(one.waits for one in due) or (due and now < self._chained_until):
            self._chained_until = now + CHAINED_FOR * self._settings.dispatch.tick
        return now < self._chained_until

    def _publish_deliveries(self, due: list[Due]) -> None:
        try:
            self._publisher.publish_deliveries([one.id for one in due], [one.notifier for one in due])
        except BrokerAway as error:
            transaction(self._engine, deliveries.withdraw, error.unpublished)
            failpoints.hit("withdraw.committed")
            raise
        if due:
            self._is_taken(DELIVERIES)

    def _is_refused(self, line: tuple[str, str], error: QueueRefused) -> None:
        wait = self._refused.add(line)
        log.error("dispatcher.queue_refused", queue=line[0], lane=line[1], error=str(error), seconds=round(wait, 1))

    def _is_taken(self, line: tuple[str, str]) -> None:
        """The broker has taken messages."""
        self._broker_answered()
        if self._refused.drop(line):
            log.info("dispatcher.queue_works_again", queue=line[0], lane=line[1])

    def _broker_answered(self) -> None:
        self._broker_backoff.reset()
        self._presence.broker_is_back()

    def _broker_is_away(self, error: BrokerAway) -> None:
        self._presence.broker_is_away(error)
        wait = self._broker_backoff.next()
        self._broker_back_at = time.monotonic() + wait
        self._windows.clear()
        log.warning("dispatcher.broker_away", error=str(error), seconds=round(wait, 1))


def _purge_page(connection: Connection, walk: retention.Round) -> tuple[str, int]:
    connection.execute(PURGE_TIMEOUT)
    return walk.purge(connection, PURGE_BATCH)
