"""The worker's line to Postgres: one thread, one connection, and shared commits.

Whatever runs ask for while a commit is under way travels together in the next one: claims in one statement a line, finishes
in one statement, one commit. An idle ledger waits for nobody. While the database is away, what has ended is kept and written
when it is back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping

from taskyard import failpoints, lifecycle, metrics, offspring
from taskyard.channels import announce
from taskyard.database_errors import driver_words, is_outage
from taskyard.metrics import Tally
from taskyard.records import Finished, NewTask
from taskyard.retrying import transaction
from taskyard.settings import Settings

log = structlog.get_logger(__name__)


#: Failures in a row after which a ledger that is to stop does.
LAST_TRIES = 3
#: Rows of lifecycle.finish by id and fence.
Ended = Mapping[tuple[UUID, int], RowMapping]


@dataclass(eq=False, slots=True)
class Request:
    """Something to do in the next commit, and where its answer goes."""

    answer: asyncio.Future[Any]


@dataclass(eq=False, slots=True)
class Claim(Request):
    queue: str
    lane: str
    ids: list[UUID]


@dataclass(eq=False, slots=True)
class Finish(Request):
    finished: Sequence[Finished]
    children: Mapping[tuple[UUID, int], Sequence[NewTask]]


@dataclass(eq=False, slots=True)
class Call(Request):
    """Any other statement. ``keep``: it is repeated until the database is back; otherwise an outage is its answer."""

    work: Callable[[Connection], Any]
    keep: bool = False


@dataclass(slots=True)
class Answers:
    """What a commit answers, request by request."""

    by_request: list[tuple[Request, Any]] = field(default_factory=list)
    claimed: list[RowMapping] = field(default_factory=list)
    submitted: list[RowMapping] = field(default_factory=list)
    finished: list[tuple[Finished, RowMapping | None]] = field(default_factory=list)


class Ledger:
    """Makes a worker's statements. Requests come from the engine's loop, and are answered there."""

    def __init__(self, engine: Engine, settings: Settings, worker: UUID, types: Sequence[str], tally: Tally) -> None:
        self.worker = worker
        self.tally = tally
        self._engine = engine
        self._settings = settings
        self._types = list(types)
        self._pending: list[Request] = []
        self._wake = threading.Condition()
        self._stopping = False
        # What runs here: the fence by the id.
        self._held: dict[UUID, int] = {}
        self._uncertain = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Claim no more, write what is waiting, hand back what is still this worker's, have it forgotten, and end the thread.

        Nothing may run any more. What takes longer than ``timeout`` seconds is left to the reaper.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)

    def begin_anew(self, worker: UUID) -> None:
        """Be another worker from now on: this one was given up, and what it held is others'."""
        self.worker = worker
        self._held = {}

    async def claim(self, queue: str, lane: str, ids: Sequence[UUID]) -> list[RowMapping]:
        """See lifecycle.claim."""
        rows: list[RowMapping] = await self._ask(lambda answer: Claim(answer, queue, lane, list(ids)))
        return rows

    async def finish(self, finished: Sequence[Finished], children: Mapping[tuple[UUID, int], Sequence[NewTask]]) -> Ended:
        """See lifecycle.finish; a missing row means that the run was stale. ``children`` of those that succeeded, by id and fence, are
        submitted in the same commit."""
        ended: Ended = await self._ask(lambda answer: Finish(answer, finished, children))
        return ended

    def call(self, work: Callable[[Connection], Any], *, keep: bool = False) -> asyncio.Future[Any]:
        """Any statement, in the next commit: asked for at once, whoever awaits the answer."""
        return self._ask(lambda answer: Call(answer, work, keep))

    def _ask(self, make: Callable[[asyncio.Future[Any]], Request]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._wake:
            self._pending.append(make(answer))
            self._wake.notify()
        return answer

    def _work(self) -> None:
        failures = 0
        while batch := self._next():
            try:
                self._commit(batch)
                failures = 0
                metrics.flush_if_due(self._engine, self.tally)
            except Exception as error:
                failures += 1
                self._keep(batch, error)
                if self._stopping and failures > LAST_TRIES:
                    break
                time.sleep(min(0.05 * 2**failures, 2.0))
        self._leave()
        metrics.flush_if_due(self._engine, self.tally, last=True)

    def _next(self) -> list[Request]:
        """What is to be done in one commit; nothing, if it is time to end."""
        with self._wake:
            while not self._pending and not self._stopping:
                self._wake.wait()
            batch, self._pending = self._pending, []
        return [request for request in batch if not (self._stopping and isinstance(request, Claim))]

    def _leave(self) -> None:
        """The last words, after all others: a claim may have been committed after its slots were gone, or a run's end not been told in time."""
        for _ in range(LAST_TRIES):
            try:
                with self._engine.begin() as connection:
                    lifecycle.lock_worker(connection, self.worker)
                    self._hand_back_strays(connection, known={})
                    lifecycle.unregister_worker(connection, self.worker)
                return
            except Exception as error:
                log.warning("worker.not_forgotten", worker=str(self.worker), error=driver_words(error))

    def _commit(self, batch: list[Request]) -> None:
        """One transaction for the batch; if a row of it is refused, one for each, so that it harms nobody else."""
        try:
            answers = transaction(self._engine, self._perform, batch)
        except Exception as error:
            if is_outage(error):
                raise
            if len(batch) > 1:
                for request in batch:
                    self._commit([request])
                return
            log.error("ledger.refused", request=type(batch[0]).__name__, error=str(error))
            _refuse(batch, error)
            return
        self._uncertain = False
        if answers.claimed:
            failpoints.hit("claim.committed")
        self._held.update({row["id"]: row["fence"] for row in answers.claimed})
        for request in batch:
            if isinstance(request, Finish):
                for finished in request.finished:
                    if self._held.get(finished.id) == finished.fence:
                        del self._held[finished.id]
                failpoints.hit("finish.committed")
        self._settle(answers)

    def _settle(self, answers: Answers) -> None:
        """Answer requests in the loop that asked, and count there: this thread has the next commit to make."""

        def settle() -> None:
            for request, value in answers.by_request:
                if not request.answer.done():
                    request.answer.set_result(value)
            self._count(answers)

        _in_loop([request for request, _ in answers.by_request], settle)

    def _count(self, answers: Answers) -> None:
        metrics.count_claimed(self.tally, answers.claimed)
        for row in answers.submitted:
            metrics.count_submitted(self.tally, row)
        ended = [row for _, row in answers.finished if row is not None]
        metrics.count_ran(self.tally, ended)
        self.tally.count(metrics.LOST, by=sum(finished.outcome == "lost" for finished, row in answers.finished if row is not None))
        self.tally.count(metrics.STALE, "finish", by=len(answers.finished) - len(ended))

    def _perform(self, connection: Connection, batch: list[Request]) -> Answers:
        """This worker's row is locked before any task's, as the reaper does it: by the claims, or where a call may want it later.

        Else a worker that was silent and comes back, and the reaper, would wait for each other.
        """
        answers = Answers()
        lines: dict[tuple[str, str], list[Claim]] = {}
        for request in batch:
            if isinstance(request, Claim):
                lines.setdefault((request.queue, request.lane), []).append(request)
        calls = [request for request in batch if isinstance(request, Call)]
        if self._uncertain or (calls and len(batch) > 1):
            lifecycle.lock_worker(connection, self.worker)
        if self._uncertain:
            self._hand_back_strays(connection, known=self._held)
        for (queue, lane), claims in lines.items():
            self._claim(connection, queue, lane, claims, answers)
        for call in calls:
            answers.by_request.append((call, call.work(connection)))
        self._finish(connection, [r for r in batch if isinstance(r, Finish)], answers)
        failpoints.hit("ledger.uncommitted")
        return answers

    def _finish(self, connection: Connection, requests: list[Finish], answers: Answers) -> None:
        if not requests:
            return
        asked = [finished for request in requests for finished in request.finished]
        rows = {(row["id"], row["fence"]): row for row in lifecycle.finish(connection, asked, self._settings.dispatch.max_lost)}
        # By id and fence: after an outage, two runs of one task may be recorded together, and only one of them counts.
        succeeded = {run for run, row in rows.items() if row["status"] == "succeeded"}
        children = [child for r in requests for run in succeeded & r.children.keys() for child in r.children[run]]
        if children:
            answers.submitted += offspring.submit(connection, children)
        again = {(row["queue"], row["lane"]) for row in rows.values() if row["status"] in ("pending", "scheduled")}
        announce(connection, again | {(child.queue, child.lane) for child in children})
        for finished in asked:
            row = rows.get((finished.id, finished.fence))
            if row is None:
                log.warning("write.stale", task_id=str(finished.id), fence=finished.fence, outcome=finished.outcome)
            answers.finished.append((finished, row))
        answers.by_request += [(request, rows) for request in requests]

    def _claim(self, connection: Connection, queue: str, lane: str, claims: list[Claim], answers: Answers) -> None:
        ids = list(dict.fromkeys(id_ for claim in claims for id_ in claim.ids))
        rows = lifecycle.claim(connection, self.worker, queue, lane, ids, self._types, self._settings.dispatch.park_delay)
        running = [row for row in rows if row["status"] == "running"]
        answers.claimed += running
        for row in rows:
            if row["unknown"]:
                log.warning("task.parked", task_id=str(row["id"]), type=row["type"], attempt=row["attempt"], fence=row["fence"])
        # Most urgent first, so they are dealt out in order: each claim asked for as many as it has slots.
        for claim in claims:
            answers.by_request.append((claim, running[: len(claim.ids)]))
            running = running[len(claim.ids) :]

    def _hand_back_strays(self, connection: Connection, known: Mapping[UUID, int]) -> None:
        """After an outage: a commit may have happened that we never heard of."""
        if strays := lifecycle.strays(connection, self.worker, known):
            log.warning("claims.handed_back", count=len(strays), task_ids=[str(stray.id) for stray in strays[:10]])
            rows = lifecycle.finish(connection, strays, self._settings.dispatch.max_lost)
            announce(connection, {(row["queue"], row["lane"]) for row in rows})

    def _keep(self, batch: list[Request], error: Exception) -> None:
        """The database is away: keep claims and finishes and what else must be written, answer the rest."""
        self._uncertain = True
        kept = [request for request in batch if not isinstance(request, Call) or request.keep]
        log.warning("ledger.database_away", error=driver_words(error), kept=len(kept))
        _refuse([request for request in batch if isinstance(request, Call) and not request.keep], error)
        with self._wake:
            self._pending = kept + self._pending


def _refuse(requests: Sequence[Request], error: Exception) -> None:
    def refuse() -> None:
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    _in_loop(requests, refuse)


def _in_loop(requests: Sequence[Request], work: Callable[[], None]) -> None:
    """All requests come from one loop, which is woken once. It may be gone by now: then nobody waits."""
    if requests:
        try:
            requests[0].answer.get_loop().call_soon_threadsafe(work)
        except RuntimeError:
            log.debug("ledger.loop_closed")
