"""The engine: takes hints, claims tasks, has them run in child processes, ends them in time, and records how they ended.

It runs in a thread of its own with an event loop; Celery's consumer hands it messages and gets told when each is settled.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import structlog
import uuid_utils.compat as uuid7
from sqlalchemy import Connection, RowMapping

from taskyard import audit, clock, failpoints, known_types, lifecycle, metrics, system
from taskyard.database import sync_engine
from taskyard.database_errors import driver_words
from taskyard.hangs import bound_waits
from taskyard.metrics import Tally
from taskyard.plugins import Registry
from taskyard.records import Finished
from taskyard.settings import Settings
from taskyard.unclaimed import DELIVERIES
from taskyard_worker.cancels import Cancels
from taskyard_worker.deliverer import Deliverer
from taskyard_worker.hearing import Hearing
from taskyard_worker.lanes import Lane, Offer
from taskyard_worker.lease import Lease
from taskyard_worker.ledger import Ledger
from taskyard_worker.pace import Pace
from taskyard_worker.processes import Nursery, Shared
from taskyard_worker.runner import Runner

log = structlog.get_logger(__name__)

#: Seconds that a commit waits for a row which somebody keeps locked. All requests of a worker, its heartbeat too, share one connection.
LOCK_TIMEOUT = 2.0


@dataclass(eq=False, slots=True)
class Message:
    """A message from the broker: ids, and how to tell Celery what became of it. All callbacks are thread-safe."""

    queue: str
    lane: str
    ids: list[Any]
    on_started: Callable[[], None]
    on_settled: Callable[[str], None]
    on_ended: Callable[[str], None]
    open: int = field(init=False)
    #: It brought another task than its own, which is still in line: its name does not stand for how that one ends.
    swapped: bool = field(default=False, init=False)
    _started: bool = field(default=False, init=False)
    _settled: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.open = len(self.ids)

    def started(self) -> None:
        """The first of its tasks runs."""
        if not self._started:
            self._started = True
            self.on_started()

    def settle(self, state: str, count: int = 1) -> None:
        """So many of the message's ids are done with.

        Celery hears of it when half of them are: the broker sends the next message, which is here when this one is worked off.
        """
        self.open -= count
        if self.open <= len(self.ids) // 2:
            self.settle_all(state)

    def settle_all(self, state: str) -> None:
        """Nobody needs the message any more. That of a task which still runs (``running``) has its end later."""
        if not self._settled:
            self._settled = True
            self.on_settled(state)
        if not self._ended and state != "running":
            self._ended = True
            self.on_ended("ignored" if self.swapped else state)


def deal(rows: Sequence[RowMapping], offers: Sequence[Offer]) -> list[tuple[Offer, list[RowMapping]]]:
    """Claimed rows to the offers that have their ids; the more urgent ones that came instead go where ids have no row."""
    owner = {id_: offer for offer in offers for id_ in offer.ids}
    dealt: dict[Offer, list[RowMapping]] = {offer: [] for offer in offers}
    spare: list[RowMapping] = []
    for row in rows:
        if offer := owner.get(row["id"]):
            dealt[offer].append(row)
        else:
            spare.append(row)
    for offer, own in dealt.items():
        room = len(offer.ids) - len(own)
        own.extend(spare[:room])
        del spare[:room]
        own.sort(key=lambda row: (-row["priority"], row["id"]))
    return list(dealt.items())


class Engine:
    """One worker. ``start`` and ``stop`` block; ``offer`` may be called from any thread in between."""

    def __init__(self, settings: Settings, registry: Registry, name: str, queues: list[str], processes: int, connect_anew: Callable[[], None] | None) -> None:
        self._settings = settings
        self._registry = registry
        self._name = name
        self._queues = queues
        self._processes = processes
        self._connect_anew = connect_anew
        self._database = sync_engine(settings.database, role="worker", pool_size=2, lock_timeout=LOCK_TIMEOUT)
        bound_waits(self._database, settings.database)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run_loop, name="engine", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._stop_asked: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lifespan_problems: dict[str, str | None] = {}

    def start(self) -> None:
        """Start processes and threads; returns when the plugins are loaded. Raises what prevented it."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def begin_stop(self) -> None:
        """Begin what :meth:`stop` waits for. Returns at once; safe in a signal handler."""
        if self._loop is not None and self._thread.is_alive() and self._stop_asked is not None:
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    def stop(self) -> None:
        """Take nothing more, let what runs end within the grace, hand the rest back, end all processes."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join()
        self._database.dispose()

    @property
    def has_ended(self) -> bool:
        """Has it drained, handed back the rest and taken its leave of the database?"""
        return not self._thread.is_alive()

    def worker_id(self) -> UUID:
        """The id of this worker's row. It changes when the worker was given up as lost."""
        return self._ledger.worker

    def offer(self, message: Message) -> None:
        """Take a message from the broker."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._take, message)

    def cancel(self, anywhere: Sequence[UUID], handed_out: Sequence[UUID]) -> None:
        """Cancel tasks, as a person does: ``anywhere``, or only if they are ``handed_out``: queued or running. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self._spawn(self._revoke(anywhere, handed_out)))

    async def _revoke(self, anywhere: Sequence[UUID], handed_out: Sequence[UUID]) -> None:
        actor = audit.Actor.by_broker(self._name)

        def revoke(connection: Connection) -> list[RowMapping]:
            rows = lifecycle.revoke(connection, anywhere, handed_out)
            for row in rows:
                audit.record(connection, actor, "task.cancel", str(row["id"]))
            return rows

        try:
            rows = await self._ledger.call(revoke, patience=self._settings.dispatch.sweep_after)
        except Exception as error:
            log.error("tasks.not_revoked", error=driver_words(error), task_ids=[str(id_) for id_ in (*anywhere, *handed_out)][:10])
            return
        metrics.count_ended(self._ledger.tally, *rows)
        log.info("tasks.revoked", count=len(rows), task_ids=[str(row["id"]) for row in rows][:10])

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
            log.exception("engine.failed")
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        self._registered = asyncio.Event()
        tally = Tally.of(self._registry, self._queues)
        self._ledger = Ledger(self._database, self._settings, uuid7.uuid7(), list(self._registry.names), tally)
        self._nursery = Nursery(self._on_processes_lost, self._on_lifespan, lambda type_, seconds: tally.count(metrics.BLOCKED, type_, by=seconds))
        await self._nursery.start()
        self._lease = Lease(self._settings.dispatch.worker_silence)
        self._beat_now = asyncio.Event()
        # Claimed tasks on their way to the runner, by id: their fences. And what neither it nor the runner knew at the last beat.
        self._beginning: dict[UUID, int] = {}
        self._unknown: set[tuple[UUID, int]] = set()
        self._pace = Pace(self._registry.names, self._beat_now.set)
        # Notifiers and observers have a process of their own, which is there once it is needed: none of them can hold up a handler.
        tellers = Shared(self._nursery)
        self._runner = Runner(self._settings, self._registry, self._ledger, self._nursery, self._processes, self._pace, tellers)
        self._deliverer = Deliverer(self._settings, self._ledger, self._nursery, tellers)
        self._lanes = {
            "sync": Lane("sync", self._processes, self._claim, self._withdraw),
            "async": Lane("async", self._settings.worker.async_slots, self._claim, self._withdraw),
        }
        self._hearing = Hearing(self._ledger, self._settings.dispatch.sweep_after / 2, self._prefetch(), self._connect_anew or (lambda: None))
        self._ledger.start()
        await self._runner.start()
        cancels = Cancels(self._database, self._runner.cancel)
        background = [asyncio.create_task(work) for work in (self._beat(), cancels.listen(), self._runner.report_progress())]
        watch = asyncio.create_task(self._hearing.watch()) if self._connect_anew else None
        self._started.set()
        await self._stop_asked.wait()
        if watch is not None:
            watch.cancel()
        await self._drain(self._settings.worker.stop_grace)
        for task in background:
            task.cancel()
        await self._nursery.stop()
        self._ledger.stop(5.0)

    async def _drain(self, grace: float) -> None:
        """Claim no more, and let what runs, or was just claimed, end within the grace."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + grace
        for lane in self._lanes.values():
            lane.close()
        log.info("worker.drains", running=len(self._runner.running_ids()), grace=grace)
        for lane in self._lanes.values():
            await lane.settled(ends_at - loop.time())
        await self._runner.drain(ends_at - loop.time())

    def _spawn(self, work: Any) -> None:
        """Run a coroutine in the background; what it raises is logged, not lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("engine.error", error=repr(error), exc_info=error)

    def _on_processes_lost(self) -> None:
        log.error("worker.processes_lost", consequence="they are started again")
        self._spawn(self._restart_processes())

    def _on_lifespan(self, plugin: str, problem: str | None) -> None:
        """A plugin's lifespan did not start in a process here, or has started after all. Operators hear of it as of a plugin that can't be loaded."""
        if self._lifespan_problems.get(plugin) != problem:
            self._lifespan_problems[plugin] = problem
            self._spawn(self._note_plugin(plugin, problem))

    async def _note_plugin(self, plugin: str, problem: str | None) -> None:
        try:
            await self._ledger.call(partial(system.note_plugins, states={plugin: problem}))
        except Exception as error:
            # Its next start, or failure for another reason, tells again; the log has it.
            log.warning("plugin.not_noted", plugin=plugin, error=driver_words(error))

    async def _restart_processes(self) -> None:
        """Until it works: what is claimed waits for a process, and gets it when there is memory again, say."""
        pause = 0.0
        while not await self._processes_started():
            pause = min(pause + 1.0, 30.0)
            await asyncio.sleep(pause)

    async def _processes_started(self) -> bool:
        try:
            await self._nursery.start()
            await self._runner.start()
        except Exception as error:
            log.error("worker.processes_not_started", error=repr(error), consequence="it is tried again")
            return False
        return True

    # --- messages ---

    def _take(self, message: Message) -> None:
        assert self._stop_asked is not None
        failpoints.hit("message.taken")
        if self._stop_asked.is_set():
            return
        self._hearing.heard(message.queue, message.lane)
        message.on_settled = partial(self._settled, message, message.on_settled)
        if message.lane == "deliveries":
            self._spawn(self._deliverer.deliver(message))
            return
        assert self._loop is not None
        self._loop.call_later(self._settings.broker.settle_after, message.settle_all, "running")
        self._lanes[message.lane].offer(message)

    def _prefetch(self) -> dict[tuple[str, str], int]:
        """How many messages of each queue the broker gives this worker before one is settled: see steps.py."""
        slots = {"sync": self._processes, "async": self._settings.worker.async_slots}
        return {(queue, lane): count for queue in self._queues for lane, count in slots.items()} | {DELIVERIES: self._settings.deliveries.concurrency}

    def _settled(self, message: Message, tell: Callable[[str], None], state: str) -> None:
        self._hearing.settled(message.queue, message.lane)
        tell(state)

    async def _claim(self, lane: Lane, queue: str, offers: list[Offer]) -> None:
        """Claim for offers that each hold a slot. One may bring other tasks than its own: more urgent ones.

        Whatever is raised here, each slot becomes free again and each message is settled.
        """
        await self._registered.wait()
        try:
            rows = await self._ledger.claim(queue, lane.name, [id_ for offer in offers for id_ in offer.ids])
        except Exception as error:
            log.warning("claim.refused", queue=queue, lane=lane.name, error=driver_words(error), consequence="the dispatcher sends its tasks again")
            for offer in offers:
                offer.message.settle("ignored", len(offer.ids))
            lane.free_slots(len(offers))
            return
        claimed = {row["id"]: row["fence"] for row in rows}
        self._beginning.update(claimed)
        try:
            await self._begin(lane, deal(rows, offers))
        finally:
            for id_, fence in claimed.items():
                if self._beginning.get(id_) == fence:
                    del self._beginning[id_]

    async def _begin(self, lane: Lane, dealt: list[tuple[Offer, list[RowMapping]]]) -> None:
        """Have the runner run what was claimed. It calls back once for each run, even for one that it can't begin."""
        # That of the worker that has claimed them: it may have been given up by the time that there is a process for them.
        lease = self._lease
        for offer, own in dealt:
            if own:
                offer.message.started()
            offer.message.swapped = not {row["id"] for row in own} <= set(offer.ids)
            offer.message.settle("ignored", len(offer.ids) - len(own))
        lane.free_slots(sum(not own for _, own in dealt))
        if lane.name == "async":
            await self._run_side_by_side(lane, dealt, lease)
        else:
            for offer, own in dealt:
                if own:
                    await self._runner.run_in_turn(own, lease, offer.message.settle, partial(lane.free_slots, 1))

    async def _run_side_by_side(self, lane: Lane, dealt: list[tuple[Offer, list[RowMapping]]], lease: Lease) -> None:
        def ended(message: Message, outcome: str) -> None:
            lane.free_slots(1)
            message.settle(outcome)

        rows = [row for _, own in dealt for row in own]
        if rows:
            await self._runner.run_side_by_side(rows, lease, [partial(ended, offer.message) for offer, own in dealt for _ in own])

    async def _withdraw(self, lane: Lane, offers: list[Offer]) -> None:
        """Give back what this worker has no room for: others may. While the database is away the messages stay here, for nobody could claim them."""
        ids: list[UUID] = [id_ for offer in offers for id_ in offer.ids]
        try:
            await self._ledger.withdraw({(offer.message.queue, lane.name) for offer in offers}, ids)
        except Exception as error:
            log.warning("withdraw.refused", error=driver_words(error), count=len(ids), consequence="the dispatcher sends its tasks again")
        finally:
            for offer in offers:
                offer.message.settle("withdrawn", len(offer.ids))

    # --- life signs ---

    async def _beat(self) -> None:
        """Register, then beat. A worker that was given up as lost drops what it runs and starts anew under another id.

        It beats at once when it has learned how long a new type takes: until the dispatcher knows, that type's tasks travel alone.
        """
        while True:
            try:
                asked_at = clock.now()
                if not self._registered.is_set():
                    await self._register()
                self._beat_now.clear()
                if not await self._ledger.call(
                    partial(lifecycle.beat, worker=self._ledger.worker, pace=self._pace.as_json(), busy=self._runner.busy(), idle=self._ledger.idle)
                ):
                    self._ledger.tally.count(metrics.STALE, "beat")
                    log.error("worker.given_up", worker=str(self._ledger.worker), consequence="its runs are ended, it starts anew")
                    self._ledger.begin_anew(uuid7.uuid7())
                    self._lease.lose()
                    self._lease = Lease(self._settings.dispatch.worker_silence)
                    self._registered.clear()
                    self._runner.abandon_all()
                    continue
                self._lease.renew(asked_at)
                self._registered.set()
                failpoints.hit("beat.committed")
                for id_ in await self._ledger.call(lambda connection: lifecycle.cancel_requests(connection, self._runner.running_ids())):
                    self._runner.cancel(id_)
                self._hand_back_unknown()
            except Exception as error:
                log.warning("worker.beat_failed", error=driver_words(error))
                await asyncio.sleep(min(1.0, self._settings.worker.heartbeat))
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._beat_now.wait(), self._settings.worker.heartbeat)

    def _hand_back_unknown(self) -> None:
        """Give back claimed tasks that nobody here knows of, at two beats in a row: the answer to a claim may be on its way to who asked."""
        known = self._runner.running() | self._beginning
        unknown = {(id_, fence) for id_, fence in self._ledger.held().items() if known.get(id_) != fence}
        forgotten, self._unknown = unknown & self._unknown, unknown - self._unknown
        if forgotten:
            log.error("tasks.forgotten", count=len(forgotten), task_ids=[str(id_) for id_, _ in forgotten][:10], consequence="they go back in line")
            returned = [Finished(id_, fence, "returned", reason="its worker lost track of it") for id_, fence in forgotten]
            self._spawn(self._ledger.finish(returned, {}))

    async def _register(self) -> None:
        slots, host = {"sync": self._processes, "async": self._settings.worker.async_slots}, socket.gethostname()
        await self._ledger.call(lambda connection: lifecycle.register_worker(connection, self._ledger.worker, self._name, self._queues, slots, host))
        await self._ledger.call(lambda connection: system.note_plugins(connection, self._registry.states()))
        await self._ledger.call(lambda connection: known_types.note(connection, self._registry.owners()))
        log.info("worker.ready", worker=str(self._ledger.worker), name=self._name, queues=self._queues, types=sorted(self._registry.names), **slots)
