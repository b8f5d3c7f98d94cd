"""What handlers log, on its way from the worker to Postgres: written in batches, before the end of its run is, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from uuid import UUID

import structlog
from pydantic_core import to_json

from taskyard import metrics, tasklogs
from taskyard.database_errors import driver_words
from taskyard_worker.ledger import Ledger
from taskyard_worker.ledger_requests import FOREVER
from taskyard_worker.loglines import Message, Rings

log = structlog.get_logger(__name__)

#: Bytes of lines that wait in a worker at most; and that it writes at once: its claims and finishes wait for that.
PER_WORKER, AT_ONCE = 32 * 1024 * 1024, 256 * 1024

Run = tuple[UUID, int]


class Logbook:
    """The lines of a worker's runs, by task and fence. For the engine's loop. A run that logs nothing costs nothing."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rings: Rings[Run] = Rings(PER_WORKER)
        self._under_way = 0

    def add(self, run: Run, said: Message) -> None:
        """A child has sent lines of a run."""
        self._rings.add(run, said["lines"], said["dropped"])

    def write_some(self) -> None:
        """Have some of what waits written, unless that is still being done: now and then."""
        if not self._rings or self._under_way:
            return
        left, rows = AT_ONCE, []
        for run in self._rings.runs():
            if left <= 0:
                break
            rows.append(self._row(run, left))
            left -= len(rows[-1])
        self._write(rows)

    def write_last(self, over: Iterable[Run]) -> None:
        """Have all written that waits of runs that are over. Whatever the ledger is asked for next comes after it."""
        if not self._rings:
            return
        waiting = set(self._rings.runs())
        for run in over:
            if run in waiting:
                self._write([self._row(run)])

    def _row(self, run: Run, most: int | None = None) -> str:
        """For tasklogs.write. The lines are JSON already, and looked at by nobody here."""
        lines, dropped = self._rings.take(run, most)
        head = to_json({"id": run[0], "fence": run[1], "dropped": dropped}).decode()
        return f'{head[:-1]},"lines":[{",".join(lines)}]}}'

    def _write(self, rows: list[str]) -> None:
        """What is under way takes room too: while the database is away, it waits in the ledger."""
        size = sum(map(len, rows))
        self._under_way += size
        self._rings.most -= size
        written = self._ledger.call(partial(tasklogs.write, rows=f"[{','.join(rows)}]"), patience=FOREVER)
        written.add_done_callback(partial(self._written, size, len(rows)))

    def _written(self, size: int, runs: int, written: asyncio.Future[list[UUID]]) -> None:
        self._under_way -= size
        self._rings.most += size
        if written.cancelled():
            return
        if error := written.exception():
            log.warning("lines.not_written", error=driver_words(error), bytes=size)
        else:
            self._ledger.tally.count(metrics.STALE, "log", by=runs - len(written.result()))
