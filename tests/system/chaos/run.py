"""One run: start everything, submit and hurt it, wait for quiet, count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taskyard_migrations.runner import upgrade
from tests.disk import Disk
from tests.ground import Ground, depth, private_broker, private_postgres

from .clients import Pace, clients_of
from .count import Count, Counter, leftovers
from .database import Database
from .faults import Faults
from .plan import SERVERS, Plan
from .receiver import Receiver
from .records import Records
from .refusals import Refusals
from .report import Progress
from .roles import Roles

#: Clients wait while more tasks than this are on their way.
DEEPEST = 3000
#: With more than this on their way, messages may wait for longer than a sweep trusts an empty queue: they are sent again, and none was lost.
SHALLOW = 1000
_OPEN = "SELECT (SELECT count(*) FROM tasks WHERE ended IS NULL) AS tasks, (SELECT count(*) FROM deliveries WHERE next_try_at IS NOT NULL) AS deliveries"


class Broken(Exception):
    """The run itself went wrong, and says nothing about the product."""


class Run:
    """A plan on its way. For the main thread, which owns the embedded servers."""

    def __init__(self, plan: Plan, ground: Ground, folder: Path) -> None:
        self._plan = plan
        self._ground = ground
        self._records = Records(folder)
        self._receiver = Receiver(self._records.receiver, plan.seed)
        self._disk = Disk()
        self._database = Database.made_on(ground.postgres.url, self._disk)
        upgrade(self._database.url)
        self._roles = Roles(plan, ground, self._database.url_of_roles(), folder, self._records, self._receiver.url)
        self._pace = Pace(plan)
        refusals = Refusals(self._disk, self._database, self._roles, seconds=2 * plan.silence)
        self._faults = Faults(plan, ground, self._roles, self._database, self._records, self._pace, refusals)
        self._clients = clients_of(plan, self._pace, list(self._roles.ports.values()), self._records.clients)
        self._lanes = [threading.Thread(target=self._watched, args=(lane,), name=lane, daemon=True) for lane in plan.lanes if lane != SERVERS]
        self._failure: BaseException | None = None
        self.progress = Progress()

    def go(self) -> list[Count]:
        """All of it. Raises Broken."""
        try:
            self._roles.start()
            self._until(self._roles.are_up, 90, "the roles to be ready")
            self.progress.say("everything is up")
            self._pace.begin()
            for thread in (*self._clients, *self._lanes):
                thread.start()
            self._lane(SERVERS)
            self._until(lambda: not any(lane.is_alive() for lane in self._lanes), 3600, "the faults to be over")
            self._until(lambda: not any(client.is_alive() for client in self._clients), 3600, "the clients to be done")
            self.progress.say("the last fault is over, and all is submitted; waiting for quiet")
            self._wait_for_quiet()
            counts = list(Counter(self._plan, self._database, self._roles, self._records).all())
            depths = {queue: messages for queue in self._roles.queues if (messages := depth(self._ground.broker.url, queue))}
            self._roles.stop()
            return counts + list(leftovers(self._database, self._roles, depths))
        finally:
            for client in self._clients:
                client.stopping.set()
            self._roles.stop()
            self._receiver.shutdown()
            self._receiver.server_close()
            self._database.drop(self._ground.postgres.url)
            self._disk.close()

    # --- the faults, lane by lane ---

    def _watched(self, lane: str) -> None:
        try:
            self._lane(lane)
        except BaseException as error:
            self._failure = error

    def _lane(self, lane: str) -> None:
        for fault in self._plan.lane(lane):
            self._pace.comes(lane, fault.at)
            self._until(lambda at=fault.at: self._pace.progress >= at, 3600, str(fault))
            self.progress.say(str(fault))
            self._faults.do(fault)
        self._pace.comes(lane, 1.0)

    # --- waiting ---

    def _until(self, condition: Any, seconds: float, what: str) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            failure = self._failure or next((client.failure for client in self._clients if client.failure), None)
            if failure is not None:
                raise Broken(f"{type(failure).__name__}: {failure}") from failure
            if self._roles.broken:
                raise Broken(self._roles.broken)
            if time.monotonic() > end:
                raise Broken(f"{what}: not within {seconds:g} s")
            if threading.current_thread() is threading.main_thread():
                self._tell()
            time.sleep(0.05)
        return True

    def _tell(self) -> None:
        if self.progress.due():
            row = self._database.rows(_OPEN)[0]
            self._pace.behind = row.tasks > DEEPEST
            if row.tasks > SHALLOW:
                self._records.faults.write("behind", row.tasks)
            self.progress.say(f"{self._pace.answered:,} of {self._plan.tasks:,} submitted, {row.tasks:,} on their way, {row.deliveries:,} to be told")

    def _wait_for_quiet(self) -> None:
        """Until nothing is on its way; what never comes to rest is counted as such."""
        self._until(self._roles.are_up, 90, "the roles to be up again")
        end = time.monotonic() + self._plan.quiet
        while time.monotonic() < end:
            row = self._database.rows(_OPEN)[0]
            workers = self._database.value("SELECT count(*) FROM workers")
            if not row.tasks and not row.deliveries and workers == 2 and not any(depth(self._ground.broker.url, queue) for queue in self._roles.queues):
                self.progress.say("all is quiet")
                return
            self._tell()
            time.sleep(0.1)
        self.progress.say("it did not come to rest")


@contextmanager
def ground_of(kind: str, folder: Path) -> Iterator[Ground]:
    """Servers of the run's own."""
    with ExitStack() as stack:
        postgres = private_postgres(folder / "pg")
        stack.callback(postgres.close)
        broker = private_broker(kind, folder / "mq")
        stack.callback(broker.close)
        ground = Ground(kind, postgres, broker)
        stack.callback(ground.close)
        yield ground
