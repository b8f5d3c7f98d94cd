"""The worker's line to Postgres: one thread, one connection, and shared commits.

Requests that come while a commit is under way travel together in the next one: claims in one statement a line, finishes in one statement,
one commit. An idle ledger waits for nobody. What PostgreSQL refuses without blaming its data is kept and tried again, however long that takes:
the end of a run is never dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping

from taskyard import failpoints, lifecycle, metrics, offspring
from taskyard.channels import announce
from taskyard.database_errors import driver_words, is_outage, was_rolled_back
from taskyard.metrics import Tally
from taskyard.records import Finished, NewTask
from taskyard.retrying import transaction
from taskyard.settings import Settings
from taskyard_worker.ledger_requests import Call, Claim, Finish, Request, in_loop, refuse
from taskyard_worker.waiting_requests import WaitingRequests

log = structlog.get_logger(__name__)


#: Tries of what is left when a ledger is to stop, and seconds between them.
LAST_TRIES, LAST_PAUSE = 4, 0.2
#: Where each request is tried by itself: seconds that this may take, and refusals in a row after which nothing seems to work.
ONE_BY_ONE, REFUSALS = 1.0, 10
#: Rows of lifecycle.finish by id and fence.
Ended = Mapping[tuple[UUID, int], RowMapping]
Refused: TypeAlias = dict[Request, Exception]


@dataclass(slots=True)
class Answers:
    """What a commit answers, request by request."""

    by_request: list[tuple[Request, Any]] = field(default_factory=list)
    claimed: list[RowMapping] = field(default_factory=list)
    submitted: list[RowMapping] = field(default_factory=list)
    finished: list[tuple[Finished, RowMapping | None]] = field(default_factory=list)
    progressed: bool = False


class Ledger:
    """Makes a worker's statements. Requests come from the engine's loop, and are answered there."""

    def __init__(self, engine: Engine, settings: Settings, worker: UUID, types: Sequence[str], tally: Tally) -> None:
        self.worker = worker
        self.tally = tally
        self._engine = engine
        self._settings = settings
        self._types = list(types)
        self._waiting = WaitingRequests()
        # What runs here: the fence by the id.
        self._held: dict[UUID, int] = {}
        self._uncertain = False
        self._progressed_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Claim no more, write what is waiting, hand back what is still this worker's, have it forgotten, and end the thread.

        Nothing may run any more. What takes longer than ``timeout`` seconds is left to the reaper.
        """
        self._waiting.stop()
        self._thread.join(timeout)

    @property
    def idle(self) -> float:
        """Seconds since the last claim or end of a run was committed."""
        return time.monotonic() - self._progressed_at

    def held(self) -> dict[UUID, int]:
        """The fence of each task that was claimed here and whose end is not committed."""
        return dict(self._held)

    def begin_anew(self, worker: UUID) -> None:
        """Be another worker from now on: this one was given up, and what it held is others'."""
        self.worker = worker
        self._held = {}

    async def claim(self, queue: str, lane: str, ids: Sequence[UUID]) -> list[RowMapping]:
        """See lifecycle.claim. Raises what PostgreSQL said to a claim that it goes on refusing: others send its tasks again."""
        patience = self._settings.dispatch.sweep_after
        rows: list[RowMapping] = await self._ask(lambda answer: Claim(answer, queue, lane, list(ids), patience=patience))
        return rows

    async def finish(self, finished: Sequence[Finished], children: Mapping[tuple[UUID, int], Sequence[NewTask]]) -> Ended:
        """See lifecycle.finish; a missing row means that the run was stale. ``children`` of those that succeeded, by id and fence, are
        submitted in the same commit. Raises only what blames the data: anything else is tried again until it is written.
        """
        ended: Ended = await self._ask(lambda answer: Finish(answer, finished, children))
        return ended

    async def withdraw(self, lines: Collection[tuple[str, str]], ids: Sequence[UUID]) -> None:
        """Give queued tasks of these (queue, lane) back, and have dispatchers send them to others. Raises as :meth:`claim` does."""

        def give_back(connection: Connection) -> None:
            if lifecycle.withdraw(connection, ids):
                announce(connection, lines)

        await self.call(give_back, patience=self._settings.dispatch.sweep_after)

    def call(self, work: Callable[[Connection], Any], *, patience: float = 0.0) -> asyncio.Future[Any]:
        """Any statement, in the next commit: asked for at once, whoever awaits the answer. ``patience``: see Request."""
        return self._ask(lambda answer: Call(answer, work, patience=patience))

    def _ask(self, make: Callable[[asyncio.Future[Any]], Request]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(make(answer))
        return answer

    def _work(self) -> None:
        tries = 0
        while batch := self._next():
            refused = self._write(batch)
            self._keep(batch, refused)
            if refused and self._waiting.stopping:
                tries += 1
                if tries == LAST_TRIES:
                    log.error("ledger.gives_up", kept=len(self._waiting), consequence="what ran here is given to others once this worker counts as lost")
                    break
                time.sleep(LAST_PAUSE)
            elif not refused:
                metrics.flush_if_due(self._engine, self.tally)
        self._leave()
        metrics.flush_if_due(self._engine, self.tally, last=True)

    def _next(self) -> list[Request]:
        """What is to be done in one commit; nothing, if it is time to end."""
        batch = self._waiting.take()
        return [request for request in batch if not (self._waiting.stopping and isinstance(request, Claim))]

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

    def _write(self, batch: list[Request]) -> Refused:
        """One transaction for the batch; if PostgreSQL refuses it, one for each request, so that none harms another.

        Answers the requests that it refused without blaming their data: they are to be kept.
        """
        error = self._commit(batch)
        if error is None:
            return {}
        if len(batch) == 1 or (is_outage(error) and not was_rolled_back(error)):
            return dict.fromkeys(batch, error)
        # New ones first: one that was refused before may take long to be refused again, and the heartbeat can't wait for that.
        untried = deque(sorted(batch, key=lambda request: request.refused_at is not None))
        refused, until = Refused(), time.monotonic() + ONE_BY_ONE
        while untried and time.monotonic() < until:
            if len(refused) == REFUSALS and len(refused) + len(untried) == len(batch):
                break
            request = untried.popleft()
            if alone := self._commit([request]):
                refused[request] = alone
        # Those that had no turn come first the next time.
        return dict.fromkeys(untried, error) | refused

    def _commit(self, batch: list[Request]) -> Exception | None:
        """One transaction. Answers what it raised, unless it was that of a single request whose data is wrong: that one is answered."""
        try:
            answers = transaction(self._engine, self._perform, batch)
        except Exception as error:
            if not is_outage(error) and len(batch) == 1:
                log.error("ledger.refused", request=type(batch[0]).__name__, error=driver_words(error))
                refuse(batch, error)
                return None
            if is_outage(error) and not was_rolled_back(error):
                self._uncertain = True
            return error
        self._uncertain = False
        self._committed(batch, answers)
        return None

    def _committed(self, batch: Iterable[Request], answers: Answers) -> None:
        if answers.claimed:
            failpoints.hit("claim.committed")
        self._held.update({row["id"]: row["fence"] for row in answers.claimed})
        for request in batch:
            if isinstance(request, Finish):
                for finished in request.finished:
                    if self._held.get(finished.id) == finished.fence:
                        del self._held[finished.id]
                failpoints.hit("finish.committed")
        if answers.progressed:
            self._progressed_at = time.monotonic()
        self._settle(answers)

    def _settle(self, answers: Answers) -> None:
        """Answer requests in the loop that asked, and count there: this thread has the next commit to make."""

        def settle() -> None:
            for request, value in answers.by_request:
                if not request.answer.done():
                    request.answer.set_result(value)
            self._count(answers)

        in_loop([request for request, _ in answers.by_request], settle)

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
        answers.progressed = True

    def _claim(self, connection: Connection, queue: str, lane: str, claims: list[Claim], answers: Answers) -> None:
        ids = list(dict.fromkeys(id_ for claim in claims for id_ in claim.ids))
        rows = lifecycle.claim(connection, self.worker, queue, lane, ids, self._types, self._settings.dispatch.park_delay)
        running = [row for row in rows if row["status"] == "running"]
        answers.claimed += running
        # Tasks that gave way to more urgent ones wait for a message of their own again, and no message brings it but the next dispatch.
        hinted = set(ids)
        if any(row["id"] not in hinted or (row["status"] == "pending" and not row["unknown"]) for row in rows):
            announce(connection, [(queue, lane)])
        answers.progressed = answers.progressed or bool(rows)
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

    def _keep(self, batch: Sequence[Request], refused: Refused) -> None:
        """Keep what PostgreSQL refused for another try, and answer those requests whose patience is at its end."""
        failures = self._waiting.failures
        for request in self._waiting.tried(batch, refused):
            refuse([request], refused[request])
        if not refused:
            if failures and not self._waiting.failures:
                log.info("ledger.written_again", after_tries=failures)
        elif _is_power_of_two(self._waiting.failures):
            # At the first try, and ever more seldom: the outage may be long.
            words = driver_words(next(iter(refused.values())))
            log.warning("ledger.not_written", error=words, kept=len(self._waiting), written=len(batch) - len(refused), tries=self._waiting.failures)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
