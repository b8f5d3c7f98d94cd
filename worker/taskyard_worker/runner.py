"""Runs claimed tasks in child processes, ends them in time, and has the ledger record how they ended.

No coroutine waits for a run: its report is a callback, and reports that arrive together are recorded together. Only a run that
must be made to end has a coroutine, which does that.
"""

from __future__ import annotations

import asyncio
import logging as stdlib_logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from taskyard import failpoints, lifecycle, metrics
from taskyard.database_errors import driver_words
from taskyard.masking import text_of
from taskyard.plugins import Registry
from taskyard.records import Finished, NewTask
from taskyard.settings import Settings
from taskyard.storable import from_json
from taskyard_worker.ending import end_async, end_sync
from taskyard_worker.lease import Lease
from taskyard_worker.ledger import Ended, Ledger
from taskyard_worker.logbook import Logbook
from taskyard_worker.outcomes import decide, parked, shown, unstarted
from taskyard_worker.pace import Pace
from taskyard_worker.processes import Child, Nursery, Shared
from taskyard_worker.runs import log_fields
from taskyard_worker.wards import Wards
from taskyard_worker.work import Report, Run, Series, Together, Unit, bunch

log = structlog.get_logger(__name__)

#: Seconds between two writes of progress.
PROGRESS_EVERY = 0.25
#: Seconds before an end that PostgreSQL refuses in every form is tried again.
UNRECORDED_PAUSE = 10.0
#: Characters of an error's message in a log line.
MAX_LOGGED = 1000
#: A claimed task, and whom to tell how its run ended.
Claimed = tuple[RowMapping, Callable[[str], None]]
#: Cancel requests for tasks that do not run here, of which the latest are remembered for a moment.
HEARD = 1000


def _job(row: RowMapping, key: int, start_by: float) -> dict[str, Any]:
    return {
        "kind": "task",
        "key": key,
        "start_by": start_by,
        "id": str(row["id"]),
        "type": row["type"],
        "namespace": row["namespace"],
        "payload": row["payload"],
        "attempt": row["attempt"],
        "fence": row["fence"],
        "tags": row["tags"],
        "metadata": row["metadata"],
        "parent_id": row["parent_id"],
        "max_attempts": row["max_attempts"],
        "deadline": row["started"] + row["timeout"],
    }


class Runner:
    """Owns the children and the runs in them."""

    def __init__(self, settings: Settings, registry: Registry, ledger: Ledger, nursery: Nursery, processes: int, pace: Pace, tellers: Shared) -> None:
        self._settings = settings
        self._registry = registry
        self._ledger = ledger
        self._nursery = nursery
        self._processes = processes
        self._pace = pace
        self._runs: dict[UUID, Run] = {}
        self._over: list[tuple[Run, Report]] = []
        self._idle: deque[Child] = deque()
        self._wards = Wards(nursery)
        self._tellers = tellers
        self._progress: dict[tuple[UUID, int], dict[str, Any]] = {}
        self._logbook = Logbook(ledger)
        self._heard: dict[UUID, None] = {}
        self._empty = asyncio.Event()
        self._stopping = False
        self._background: set[asyncio.Task[None]] = set()
        self._tells_all = stdlib_logging.getLogger(__name__).isEnabledFor(stdlib_logging.DEBUG)
        #: Seconds that a task waits whose plugin's lifespan did not start.
        self.park_delay = settings.dispatch.park_delay
        self._observed = bool(registry.hook.taskyard_task_event.get_hookimpls())

    async def start(self) -> None:
        """Fork the first children, so that the first task does not wait for them."""
        self._idle.clear()
        await self._wards.common()
        for _ in range(self._processes):
            self._idle.append(await self._nursery.fork("sync"))

    async def _sync_child(self) -> Child:
        while self._idle:
            child = self._idle.popleft()
            if not (child.dead or child.spent):
                return child
        return await self._nursery.fork("sync")

    # --- runs begin ---

    async def run_side_by_side(self, rows: Sequence[RowMapping], lease: Lease, on_ended: Sequence[Callable[[str], None]]) -> None:
        """Begin async tasks that were claimed under ``lease``. ``on_ended`` gets each outcome before it is recorded: the slot is free, and the broker may send
        the next hint while the record is on its way to Postgres.
        """
        pairs = list(zip(rows, on_ended, strict=True))
        if fresh := [pair for pair in pairs if not pair[0]["lost"]]:
            self._begin(await self._wards.common(), lease, fresh)
        for row, ended in pairs:
            if row["lost"] and lease.lost:
                ended("stale")
            elif row["lost"]:
                self._begin(await self._wards.apart(row["id"], row["lost"]), lease, [(row, ended)])

    def _begin(self, child: Child, lease: Lease, pairs: Iterable[Claimed]) -> None:
        if lease.lost:
            # The worker was given up while they waited for this process: they are others' by now.
            for _, ended in pairs:
                ended("stale")
            child.end_if_idle()
            return
        pairs = list(pairs)
        try:
            units = self._units(child, lease, pairs)
            self.send(child, units)
            for unit in units:
                unit.arm()
        except Exception as error:
            self._not_begun(child, [row for row, _ in pairs], error)
            for _, ended in pairs:
                ended("error")
            return
        self._heed_early_cancels(units)

    async def run_in_turn(self, rows: Sequence[RowMapping], lease: Lease, on_ended: Callable[[str], None], on_over: Callable[[], None]) -> None:
        """Begin sync tasks that were claimed under ``lease`` in one process, one after the other. ``on_over`` is called when none of them is left."""
        child = await self._sync_child()
        if lease.lost:
            self._idle.append(child)
            for _ in rows:
                on_ended("stale")
            on_over()
            return
        try:
            series = Series(child, deque(self._units(child, lease, [(row, on_ended) for row in rows])), partial(self._recycle, on_over))
            for unit in series.units:
                unit.series = series
            series.begin()
        except Exception as error:
            self._not_begun(child, rows, error)
            for _ in rows:
                on_ended("error")
            on_over()
            return
        self._heed_early_cancels(series.units)

    def _not_begun(self, child: Child, rows: Sequence[RowMapping], error: Exception) -> None:
        """Forget what could not be handed to a child, whose state nobody knows now. Their claims are given back at a later beat."""
        log.error("tasks.not_begun", error=repr(error), task_ids=[str(row["id"]) for row in rows][:10], exc_info=error)
        for row in rows:
            run = self._runs.get(row["id"])
            if run is not None and run.fence == row["fence"]:
                unit = run.together or run
                if unit.timer is not None:
                    unit.timer.cancel()
                child.forget(unit.key)
                self._forget(run)
        child.retire()

    def send(self, child: Child, units: Iterable[Unit]) -> None:
        """Have a child run them, or nobody, if the time for that is over: they were claimed too late."""
        if not self._stopping:
            child.start(units)
            return
        for unit in units:
            asyncio.get_running_loop().call_soon(unit.reported, unstarted("worker stopping"))

    def _units(self, child: Child, lease: Lease, pairs: Iterable[Claimed]) -> list[Unit]:
        return [self._unit(child, lease, together) for together in bunch(pairs, self._registry.names)]

    def _unit(self, child: Child, lease: Lease, pairs: Sequence[Claimed]) -> Unit:
        """What a child is to work on at one time. A batch handler takes a list, also of one."""
        runs = [self._new(row, child, lease, ended) for row, ended in pairs]
        if runs[0].handler.batch is None:
            return runs[0]
        key, first = self._nursery.next_key(), runs[0].job
        job = {"kind": "batch", "key": key, "start_by": first["start_by"], "type": first["type"], "jobs": [run.job for run in runs]}
        if "soft_timeout" in first:
            job["soft_timeout"] = first["soft_timeout"]
        together = Together(self, key, job, child, runs, runs[0].timeout)
        for run in runs:
            run.together = together
        return together

    def _new(self, row: RowMapping, child: Child, lease: Lease, on_ended: Callable[[str], None]) -> Run:
        key, handler = self._nursery.next_key(), self._registry.names[row["type"]]
        job = _job(row, key, lease.ends_at)
        if (soft := handler.soft_timeout_within(row["timeout"])) is not None:
            job |= {"soft_timeout": soft, "soft_deadline": row["started"] + soft}
        run = Run(self, key, row["id"], row["fence"], row["attempt"], row["timeout"], handler, job, child, on_ended)
        run.last_attempt = row["attempt"] >= row["max_attempts"]
        run.last_loss = row["lost"] >= self._settings.dispatch.max_lost
        self._runs[run.id] = run
        return run

    def _recycle(self, on_over: Callable[[], None], series: Series) -> None:
        """Keep a process for the next runs, unless one was interrupted: what its handler was in the middle of is unknown."""
        if series.broken:
            series.child.kill()
        elif not series.child.dead:
            self._idle.append(series.child)
        on_over()

    def enforce(self, unit: Unit) -> None:
        """Make a unit end, in the background."""
        if unit.awaited is None:
            unit.awaited = asyncio.get_running_loop().create_future()
        self._spawn(self._enforce(unit, unit.awaited))

    async def _enforce(self, unit: Unit, report: asyncio.Future[Report]) -> None:
        structlog.contextvars.bind_contextvars(**log_fields(unit.job))
        reason = unit.reason or "timeout"
        if report.done():
            # It was over before this began.
            return
        if unit.series is None:
            await end_async(unit.child, unit.key, report, reason, self._settings.worker)
        elif unit is unit.series.units[0]:
            await end_sync(unit.child, unit.key, report, reason, self._settings.worker)
        else:
            # It has not begun. If its child does not hear that, its turn to be ended comes with its turn to run.
            unit.child.cancel(unit.key, reason)
            return
        if not report.done():
            unit.child.forget(unit.key)
            self.over(unit, {"outcome": "interrupted"})

    # --- runs end ---

    def over(self, unit: Unit, report: Report) -> None:
        """A unit has reported, or its child has died (None). What is over in one turn of the loop is recorded together."""
        if unit.timer is not None:
            unit.timer.cancel()
        if unit.awaited is not None and not unit.awaited.done():
            unit.awaited.set_result(report)
        if unit.series is not None:
            if report is None and unit.starting:
                # Alone in its process: nothing else can have ended it. (Of those in an event loop, nobody knows which one did.)
                report = parked("the process ended while a lifespan of its plugin was starting")
                unit.series.broken = True
            report = unit.series.judge(report)
        if report and report["outcome"] not in ("unstarted", "parked") and "seconds" in report:
            self._pace.add(unit.job["type"], report["seconds"])
        failpoints.hit("run.ended")
        # The record is asked for before the slot is free: it goes to Postgres with the claim that follows, or before it.
        if not self._over:
            asyncio.get_running_loop().call_soon(self._record_soon)
        for run, said in unit.split(report):
            self._over.append((run, said))
            run.on_ended(shown(said, run.reason, last_attempt=run.last_attempt, last_loss=run.last_loss))
        if unit.series is not None:
            unit.series.over(unit)

    def _record_soon(self) -> None:
        over, self._over = self._over, []
        self._spawn(self._record([(run, report) for run, report in over if not run.abandoned]))
        for run, _ in over:
            if run.abandoned:
                self._forget(run)

    async def _record(self, over: list[tuple[Run, Report]]) -> None:
        try:
            if last := {key: self._progress.pop(key) for run, _ in over if (key := (run.id, run.fence)) in self._progress}:
                await self._write_progress(last)
            self._logbook.write_last((run.id, run.fence) for run, _ in over)
            endings = [_ending(run, report) for run, report in over]
            children = {(finished.id, finished.fence): submitted for finished, submitted in endings if submitted}
            rows = await self._finish([finished for finished, _ in endings], children)
        finally:
            for run, _ in over:
                self._forget(run)
        for run, report in over:
            if row := rows.get((run.id, run.fence)):
                # A line for each success is a sixth of the worker's time under load, and one for each that goes back in line unbegun a third
                # of a busy one's. Postgres has them all.
                quiet = row["status"] == "succeeded" or bool(report and report["outcome"] == "unstarted")
                if not quiet or self._tells_all:
                    tell = log.debug if quiet else log.info
                    tell(
                        row["event"], status=row["status"], task_id=str(run.id), type=run.job["type"], attempt=run.attempt, fence=run.fence, **_why(row["data"])
                    )
                if self._observed:
                    await self._tell_observers(run, row)

    async def _finish(self, finished: list[Finished], children: dict[tuple[UUID, int], list[NewTask]]) -> Ended:
        """Have ends recorded. Of those whose data PostgreSQL refuses, what it can take: the run must end all the same."""
        try:
            return await self._ledger.finish(finished, children)
        except Exception as error:
            if len(finished) == 1:
                return await self._finish_as_unstorable(finished[0], error)
        rows: dict[tuple[UUID, int], RowMapping] = {}
        for one in finished:
            rows |= await self._finish([one], children)
        return rows

    async def _finish_as_unstorable(self, finished: Finished, error: Exception) -> Ended:
        message = f"PostgreSQL refused what this run left: {type(error).__name__}"
        plain = Finished(finished.id, finished.fence, "failed", error={"code": "unstorable", "message": message})
        while True:
            try:
                return await self._ledger.finish([plain], {})
            except Exception as worse:
                # A constraint or a trigger that is not ours, perhaps. It is tried until the task is no longer this run's.
                log.error("run.not_recorded", task_id=str(plain.id), fence=plain.fence, error=driver_words(worse), seconds=UNRECORDED_PAUSE)
                await asyncio.sleep(UNRECORDED_PAUSE)

    # --- what runs say, and are told ---

    def starting(self, unit: Unit, seconds: float) -> None:
        """A lifespan of its plugin starts, which may take so many seconds; 0: its handler begins now. Its timeout counts from then on."""
        unit.starting = seconds > 0
        if unit.reason is None:
            unit.arm(seconds)

    def said(self, run: Run, said: dict[str, Any]) -> None:
        """A run has said how far it is; the latest word is written now and then."""
        if not run.abandoned:
            self._progress[(run.id, run.fence)] = said

    def logged(self, run: Run, said: dict[str, Any]) -> None:
        """A run has logged lines; they are written now and then."""
        if not run.abandoned:
            self._logbook.add((run.id, run.fence), said)

    async def report_progress(self) -> None:
        """Write the latest progress of each run, and what runs have logged, now and then, until cancelled."""
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            self._logbook.write_some()
            if self._progress:
                said, self._progress = self._progress, {}
                await self._write_progress(said)

    async def _write_progress(self, said: dict[tuple[UUID, int], dict[str, Any]]) -> None:
        try:
            written = await self._ledger.call(partial(lifecycle.progress, said=said))
            self._ledger.tally.count(metrics.STALE, "progress", by=len(said) - len(written))
        except Exception as error:
            log.warning("progress.not_written", error=driver_words(error))

    async def _tell_observers(self, run: Run, row: RowMapping) -> None:
        event = {**{k: run.job[k] for k in ("namespace", "type", "tags")}, "event_id": f"{run.id}:{run.fence}", "event": row["event"]}
        event |= {"time": datetime.now().astimezone().isoformat(), "task_id": str(run.id), "task_attempt": row["attempt"], "data": row["data"] or {}}
        event |= {"queue": row["queue"], "priority": row["priority"], "status": row["status"]}
        (await self._tellers.get()).send({"event": event})

    def running_ids(self) -> list[UUID]:
        """The tasks that run here."""
        return list(self._runs)

    def running(self) -> dict[UUID, int]:
        """The fences of the tasks that run here, or whose end is being recorded."""
        return {run.id: run.fence for run in self._runs.values()}

    def busy(self) -> dict[str, int]:
        """How many slots of each lane are taken by runs: a series of runs takes one."""
        series = [(run.together or run).series for run in self._runs.values()]
        return {"sync": len({id(one) for one in series if one is not None}), "async": series.count(None)}

    def cancel(self, id_: UUID) -> None:
        """Ask a running task to stop. An id that does not run here may be one whose claim's answer is still on its way."""
        if run := self._runs.get(id_):
            run.end("cancel")
            return
        self._heard[id_] = None
        if len(self._heard) > HEARD:
            del self._heard[next(iter(self._heard))]

    def _heed_early_cancels(self, units: Iterable[Unit]) -> None:
        """Cancels that were heard before these runs were known; Postgres says whether they are these runs'."""
        for run, _ in [pair for unit in units for pair in unit.split(None)]:
            if run.id in self._heard:
                del self._heard[run.id]
                self._spawn(self._heed_early_cancel(run))

    async def _heed_early_cancel(self, run: Run) -> None:
        with suppress(Exception):
            # An outage: the heartbeat asks again.
            if await self._ledger.call(partial(lifecycle.cancel_requests, ids=[run.id])):
                run.end("cancel")

    def abandon_all(self) -> None:
        """End all runs and record nothing: they are others' by now."""
        for run in self._runs.values():
            run.abandoned = True
            run.end("stop")

    async def drain(self, grace: float) -> None:
        """Let runs end for ``grace`` seconds, then stop the rest; they are handed back without spending an attempt."""
        await self._until_empty(grace)
        self._stopping = True
        if self._runs:
            log.warning("worker.hands_back", count=len(self._runs))
        for run in list(self._runs.values()):
            run.end("stop")
        await self._until_empty(self._settings.worker.kill_grace * 3 + 2)

    async def _until_empty(self, seconds: float) -> None:
        self._empty = asyncio.Event()
        if not self._runs:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background; what it raises is logged, not lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("runner.error", error=repr(error), exc_info=error)

    def _forget(self, run: Run) -> None:
        # The same task may run here again already, under a later fence.
        if self._runs.get(run.id) is run:
            del self._runs[run.id]
        if not self._runs:
            self._empty.set()


def _why(data: Mapping[str, Any] | None) -> dict[str, str]:
    """What a line says of a run's error: its code, its message and its place."""
    error = (data or {}).get("error") or {}
    told = {"code": error.get("code"), "error": error.get("message"), "where": error.get("where")}
    return {name: text_of(value)[:MAX_LOGGED] for name, value in told.items() if value}


def _ending(run: Run, report: Report) -> tuple[Finished, list[NewTask]]:
    """How a run ended, and the tasks that it has submitted."""
    try:
        finished = decide(
            run.id, run.fence, run.attempt, run.handler.retry, run.timeout, report, run.reason, death=run.child.death, park_delay=run.runner.park_delay
        )
        return finished, [_new_task(child) for child in (report or {}).get("children") or ()]
    except Exception:
        log.exception("run.report_unreadable", task_id=str(run.id), fence=run.fence)
        return Finished(run.id, run.fence, "lost", error={"message": "Its process reported something that its worker can't read."}), []


def _new_task(text: str) -> NewTask:
    row = from_json(text)
    return NewTask(**{**row, "id": UUID(row["id"]), "parent_id": UUID(row["parent_id"]) if row["parent_id"] else None, "tags": tuple(row["tags"])})
