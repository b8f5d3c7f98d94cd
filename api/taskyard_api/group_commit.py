"""Group commit: requests that submit at the same time share one statement and one commit.

Whoever comes while nothing is on its way goes at once; whoever comes while two flushes are on their way waits for the next, with
all the others. So an idle service waits for nobody, and a loaded one does more for each commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from taskyard import failpoints, interference, lifecycle
from taskyard.errors import NotFound, Unavailable, UniqueConflict
from taskyard.idempotency import IdempotencyKey, replay, take_back
from taskyard.records import NewTask
from taskyard_api.database import Database

MAX_FLUSHES = 2
MAX_ROWS = 500
#: Whoever kept a request out by a key may be gone before it is looked for: then the request is inserted again. So often at most.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Submitted:
    """The rows of what a request submitted, in its order: those of lifecycle.submit or, if an idempotency key says that it was
    submitted before, whole ones as they stand now.
    """

    rows: Sequence[RowMapping]
    replayed: bool = False


class _Left(Exception):
    """A statement left rows out, so that its transaction is rolled back."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One request's tasks, which are submitted all or none, and the answer that it waits for."""

    new: Sequence[NewTask]
    key: IdempotencyKey | None
    answer: asyncio.Future[Submitted]

    @property
    def shares(self) -> bool:
        """May it share a transaction? Not if a row of it may be left out while others are inserted: that takes a rollback of its own."""
        return (len(self.new) == 1 and self.key is None) or all(task.unique_key is None for task in self.new)

    def key_row(self) -> dict[str, Any] | None:
        """Its idempotency key, as lifecycle.submit takes it."""
        return self.key.row([task.id for task in self.new]) if self.key else None


class GroupCommit:
    """Submits tasks for one event loop. Close it before its engine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[Waiting] = deque()
        self._flushers: set[asyncio.Task[None]] = set()

    async def submit(self, *new: NewTask, key: IdempotencyKey | None = None) -> Submitted:
        """Tasks that are committed together when this returns.

        A caller that is cancelled meanwhile leaves no others behind; its own tasks may be committed all the same.

        Raises:
            UniqueConflict: a live task has the unique_key of one of them; none is submitted.
            IdempotencyMismatch, NotFound: the key was used before, with another body, or for what is not kept any more.
            Unavailable: the database can't be reached now, or something on its table, such as a trigger, keeps a task out.
        """
        answer: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(new, key, answer))
        if len(self._flushers) < MAX_FLUSHES:
            flusher = asyncio.create_task(self._flush())
            self._flushers.add(flusher)
            flusher.add_done_callback(self._flushers.discard)
        return await answer

    async def close(self) -> None:
        """Wait until all that was handed in is committed or refused."""
        while self._flushers:
            await asyncio.wait(set(self._flushers))

    async def _flush(self) -> None:
        while batch := self._take():
            try:
                await self._answer(batch)
            except Exception as error:
                # Who came while the database did not answer would wait as long again.
                also = self._waiting_now() if isinstance(error, Unavailable) else []
                for waiting in [*batch, *also]:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)

    def _waiting_now(self) -> list[Waiting]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def _take(self) -> list[Waiting]:
        """Who shares the next transaction: as many as there is room for, and the first in any case."""
        batch: list[Waiting] = []
        rows = 0
        while self._waiting:
            first = self._waiting[0]
            if batch and (rows + len(first.new) > MAX_ROWS or not (first.shares and batch[0].shares)):
                break
            self._waiting.popleft()
            if not first.answer.done():
                batch.append(first)
                rows += len(first.new)
        return batch

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        if not batch[0].shares:
            await _each(batch[0], self._alone(batch[0]))
            return
        try:
            rows = await self._commit(batch)
        except Unavailable:
            raise
        except Exception:
            if len(batch) == 1:
                raise
            # One row that Postgres refuses must hurt only the request that brought it.
            for waiting in batch:
                await _each(waiting, self._alone(waiting))
            return
        left = []
        for waiting in batch:
            if not all(task.id in rows for task in waiting.new):
                left.append(waiting)
            elif not waiting.answer.done():
                waiting.answer.set_result(Submitted([rows[task.id] for task in waiting.new]))
        for waiting in left:
            await _each(waiting, self._again(waiting))

    async def _again(self, waiting: Waiting) -> Submitted:
        """What a statement left out: answer what its key has made, or insert it."""
        return await self._made_before(waiting) or await self._alone(waiting)

    async def _alone(self, waiting: Waiting) -> Submitted:
        for _ in range(TRIES):
            try:
                rows = await self._commit([waiting], whole=True)
            except _Left:
                if made := await self._made_before(waiting):
                    return made
            else:
                return Submitted([rows[task.id] for task in waiting.new])
        # Raises Unavailable, and logs why.
        self._database.writes.failed()
        return await self._database.read(_fail_discarded)

    async def _made_before(self, waiting: Waiting) -> Submitted | None:
        """What keeps a request out: what its key has made. None if nothing does any more. Raises UniqueConflict with who has a unique_key of it."""
        if waiting.key and (made := await self._replayed(waiting, waiting.key)):
            return Submitted(made, replayed=True)
        if wanted := {task.unique_key: index for index, task in enumerate(waiting.new) if task.unique_key is not None}:
            holders = await self._database.read(lifecycle.unique_key_holders, waiting.new[0].namespace, wanted)
            if holders:
                first = min(holders, key=lambda held: wanted[held])
                raise UniqueConflict(first, str(holders[first]), wanted[first])
        return None

    async def _replayed(self, waiting: Waiting, key: IdempotencyKey) -> list[RowMapping] | None:
        try:
            return await self._database.read(replay, key)
        except NotFound:
            # The request's own key was committed without its tasks: it must not stand in the way of the next try.
            if await self._database.write(take_back, key, [task.id for task in waiting.new]):
                return None
            raise

    async def _commit(self, batch: Sequence[Waiting], *, whole: bool = False) -> dict[UUID, RowMapping]:
        """Insert and commit; ``whole`` means all rows or, with _Left, none."""
        new = [task for waiting in batch for task in waiting.new]
        keys = [row for waiting in batch if (row := waiting.key_row())]
        # What can't be told to leave nothing out by one statement takes a transaction.
        rows = await (self._database.write(_submit_whole, new, keys) if whole else self._database.single(lifecycle.submit, new, keys))
        self._database.writes.worked()
        failpoints.hit("submit.committed")
        return rows


def _submit_whole(connection: Connection, new: Sequence[NewTask], keys: Sequence[dict[str, Any]]) -> dict[UUID, RowMapping]:
    rows = lifecycle.submit(connection, new, keys)
    if len(rows) < len(new):
        raise _Left
    failpoints.hit("submit.uncommitted")
    return rows


def _fail_discarded(connection: Connection) -> NoReturn:
    raise interference.discarded(connection)


async def _each(waiting: Waiting, submitted: Awaitable[Submitted]) -> None:
    try:
        found = await submitted
    except Exception as error:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
    else:
        if not waiting.answer.done():
            waiting.answer.set_result(found)
