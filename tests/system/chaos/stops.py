"""Stopping workers (SIGSTOP) and waking them: for a moment, or until they were given up and others run what they ran."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .database import Database
from .plan import STOPS_AT, Fault
from .records import Records
from .roles import Roles, reached

WORKERS = ("worker-1", "worker-2")


class Stops:
    """One fault at a time stops a worker: a second one would wake it too early."""

    def __init__(self, roles: Roles, database: Database, records: Records) -> None:
        self._roles = roles
        self._database = database
        self._records = records
        self._owned = {worker: threading.Lock() for worker in WORKERS}

    @contextmanager
    def halted(self) -> Iterator[None]:
        """All workers are stopped meanwhile, but those that another fault stops."""
        owned = [worker for worker in WORKERS if self._owned[worker].acquire(blocking=False)]
        for worker in owned:
            self._roles.signal(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in owned:
                self._roles.signal(worker, signal.SIGCONT)
                self._owned[worker].release()

    def at_work(self, worker: str) -> bool:
        """Stop a worker while it runs something: for whoever kills it then."""
        with self._owned[worker]:
            return reached(lambda: self._stopped_at_work(worker))

    def _stopped_at_work(self, worker: str) -> bool:
        self._roles.signal(worker, signal.SIGSTOP)
        if self._database.value(_AT_WORK, name=f"{worker}@chaos"):
            return True
        self._roles.signal(worker, signal.SIGCONT)
        return False

    def anywhere(self, fault: Fault) -> bool:
        """Stop a worker wherever it is."""
        with self._owned[fault.lane]:
            reached(lambda: self._known(fault.lane))
            self._roles.signal(fault.lane, signal.SIGSTOP)
            return self._wake_when_given_up(fault.lane)

    def at_failpoint(self, fault: Fault) -> bool:
        """Have a worker stop at a failpoint."""
        with self._owned[fault.lane]:
            self._roles.arm(fault.lane, {fault.detail: f"stop@{STOPS_AT}"})
            stopped = reached(lambda: self._roles.halted(fault.lane))
            self._roles.disarm(fault.lane)
            return self._wake_when_given_up(fault.lane) and stopped

    def overtaken(self, fault: Fault) -> bool:
        """A worker stops at a failpoint and is woken when others run what it ran; these runs end only when it has written what it had to write."""
        worker, name = fault.lane, f"{fault.lane}@chaos"
        stopped = reached(lambda: self._roles.halted(worker))
        self._roles.disarm(worker)
        overtaken = stopped and reached(lambda: self._database.value(_RUN_BY_OTHERS, name=name))
        self._roles.signal(worker, signal.SIGCONT)
        written = overtaken and reached(lambda: self._roles.said(worker, '"event": "write.stale"') or self._database.value(_ENDED, name=name))
        self._records.open_gate()
        return bool(written)

    def _wake_when_given_up(self, worker: str) -> bool:
        """Wait until a halted worker was given up and others run, or have run, what it ran; then let it go on."""
        since = self._last_event()
        given_up = reached(lambda: not self._known(worker))
        if given_up:
            reached(lambda: self._database.value(_TAKEN_OVER, since=since, name=f"{worker}@chaos"), 5.0)
        self._roles.signal(worker, signal.SIGCONT)
        return given_up

    def _last_event(self) -> int:
        return self._database.value("SELECT max(id) FROM events") or 0

    def _known(self, worker: str) -> bool:
        return bool(self._database.value("SELECT count(*) FROM workers WHERE name = :name", name=f"{worker}@chaos"))


#: Does a worker run something? One that was killed before, under the same name, does not count.
_AT_WORK = """
SELECT count(*) > 0 FROM tasks WHERE status = 'running' AND worker_id = (SELECT id FROM workers WHERE name = :name ORDER BY started_at DESC LIMIT 1)"""

#: Has every task that was lost with a worker been started by another since?
_TAKEN_OVER = """
SELECT count(*) > 0 AND bool_and(EXISTS (SELECT 1 FROM events s WHERE s.task_id = l.task_id AND s.type = 'task.started' AND s.id > l.id))
FROM events l WHERE l.id > :since AND l.type = 'task.lost' AND l.data ->> 'worker' = :name"""

_LOST = "FROM events l JOIN tasks t ON t.id = l.task_id WHERE l.type = 'task.lost' AND l.data ->> 'worker' = :name"
#: Is every task that was lost with a worker being run by another?
_RUN_BY_OTHERS = f"SELECT count(*) > 0 AND bool_and(t.status = 'running') {_LOST}"
#: Has one of them ended? While others' runs last, only a late writer can have done it.
_ENDED = f"SELECT count(*) > 0 {_LOST} AND t.ended IS NOT NULL"
