"""The faults. Each is over when its method returns; what it set out to do and did not reach is recorded as missed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import psutil
from kombu import Connection, Consumer, Queue
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from taskyard.dispatch.app import create_celery
from taskyard.dispatch.publisher import BrokerAway, Publisher
from taskyard.errors import TaskyardError
from taskyard.lifecycle import Hint
from taskyard.settings import BrokerSettings, DatabaseSettings, Settings
from taskyard_migrations.runner import downgrade, upgrade
from tests.ground import Ground, delete, depth, purge

from .clients import Pace, clients_of
from .database import Database
from .plan import KILLED, LOOP, OVERTAKEN, SERVERS, UNNOTICED, Fault, Plan, loop
from .records import Records
from .refusals import Refusals
from .roles import REACHED_WITHIN, Roles, reached, wait
from .stops import WORKERS, Stops

#: Seconds that the clients of a closed loop get: other faults hold them up.
LOOP_WITHIN = 600.0
#: Times that queues are deleted, to have it unnoticed once. Most times it is.
UNNOTICED_TRIES = 8
#: The schema before workers told of their progress and dispatchers had rows.
OLD_REVISION = "0010"


class Faults:
    """Everything that can be done to a run."""

    def __init__(self, plan: Plan, ground: Ground, roles: Roles, database: Database, records: Records, pace: Pace, refusals: Refusals) -> None:
        self._plan = plan
        self._pace = pace
        self._ground = ground
        self._roles = roles
        self._database = database
        self._records = records
        self._loops = 0
        self._stops = stops = Stops(roles, database, records)
        self._kinds: dict[str, Callable[[Fault], bool]] = {
            "broker restart": lambda _: self._restart(ground.broker.stop, ground.broker.start),
            "broker kill -9": lambda _: self._restart(ground.broker.kill, ground.broker.start),
            "PostgreSQL restart": lambda _: self._restart(ground.postgres.stop, ground.postgres.start),
            "PostgreSQL backends terminated": lambda _: self._terminate_backends(),
            "PostgreSQL read-only": lambda _: self._read_only(),
            "rights taken away": lambda _: self._take_rights(),
            "schema changed": lambda _: self._change_schema(),
            "queues purged": lambda _: self._rob(lambda: purge(ground.broker.url, *roles.queues)),
            "queues deleted": lambda _: self._rob(lambda: delete(ground.broker.url, *roles.queues)),
            "messages stolen": lambda _: self._steal(),
            "queues vanish": self._vanish,
            "messages duplicated": lambda _: self._duplicate(),
            "disk full": lambda _: refusals.disk_full(),
            "password rotated": lambda _: refusals.password_rotated(),
            "wires cut": lambda _: self._cut_wires(),
            "wires hang": lambda _: self._hang_wires(),
            LOOP: lambda _: self._loop(),
            KILLED: self._kill,
            "SIGTERM": self._terminate,
            "child kill -9": self._kill_child,
            "SIGSTOP beyond the silence limit": stops.anywhere,
            "stopped at": stops.at_failpoint,
            OVERTAKEN: stops.overtaken,
        }

    def do(self, fault: Fault) -> None:
        """Do it, and record when it began and ended."""
        words = fault.kind.replace(" ", "_"), fault.detail.replace(" ", "+") or "-"
        self._records.faults.write("began", fault.lane, *words)
        done = self._kinds[fault.kind](fault)
        # The next one finds a role at work, and not one that is starting.
        if fault.lane in self._roles.names:
            done = reached(lambda: self._roles.is_up(fault.lane), 2 * REACHED_WITHIN) and done
        self._records.faults.write("done" if done else "missed", fault.lane, *words)

    # --- servers ---

    def _restart(self, end: Callable[[], None], start: Callable[[], None]) -> bool:
        end()
        start()
        return True

    def _terminate_backends(self) -> bool:
        for _ in range(3):
            self._database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'taskyard-%'")
            wait(0.3)
        return True

    def _read_only(self) -> bool:
        """As in a failover: the roles' sessions end, and those that they make can't write, until the server is the primary again."""
        whose = f"ALTER ROLE {self._database.user} IN DATABASE {self._database.user}"
        self._database.execute(f"{whose} SET default_transaction_read_only = on")
        self._database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'taskyard-%'")
        wait(self._plan.silence)
        self._database.execute(f"{whose} RESET default_transaction_read_only")
        return self._was_refused()

    def _take_rights(self) -> bool:
        """And give them back."""
        self._database.execute(f"REVOKE INSERT, UPDATE ON tasks FROM {self._database.user}")
        wait(self._plan.silence)
        self._database.execute(f"GRANT INSERT, UPDATE ON tasks TO {self._database.user}")
        return self._was_refused()

    def _change_schema(self) -> bool:
        """Under load: a column comes and another one changes its type, and the schema goes back to one that the roles don't know, and up again."""
        for column, kind in (("ADD COLUMN chaos int", "bigint"), ("DROP COLUMN chaos", "int")):
            self._database.execute(f"ALTER TABLE tasks {column}, ALTER COLUMN max_attempts TYPE {kind}")
            wait(0.5)
        reached(lambda: self._migrates(downgrade, OLD_REVISION), 60)
        wait(self._plan.silence / 2)
        return reached(lambda: self._migrates(upgrade, "head"), 60)

    def _migrates(self, migrate: Callable[[str, str], None], revision: str) -> bool:
        """A migration that does not get its locks in time, for the load, is tried again."""
        try:
            migrate(self._database.url, revision)
        except (DBAPIError, TaskyardError):
            return False
        return True

    def _was_refused(self) -> bool:
        """Was a worker refused what it had to write? Else the window proves nothing."""
        return any(self._roles.events("ledger.not_written"))

    def _rob(self, take: Callable[[], object]) -> bool:
        """Take what is in the queues. The workers are halted first, so that something is."""
        return reached(lambda: self._robbed(take))

    def _robbed(self, take: Callable[[], object]) -> bool:
        with self._stops.halted():
            # They must not be given up for it. If nothing comes in this time, they work on, and it is tried again.
            if not reached(lambda: self._count("status = 'queued'"), self._plan.silence / 2):
                return False
            with suppress(OSError, *_broker_errors(self._ground.broker.url)):
                take()
            return True

    def _steal(self, seconds: float = 3.0) -> bool:
        """A stranger consumes from the queues, until it has something that was for nobody else: its share of the messages is lost."""
        stolen: list[Any] = []
        began = time.monotonic()
        with suppress(*_broker_errors(self._ground.broker.url)), Connection(self._ground.broker.url) as connection, connection.channel() as channel:
            queues = [Queue(name, no_declare=True) for name in self._roles.queues]
            with Consumer(channel, queues, on_message=stolen.append, no_ack=True):
                while time.monotonic() < began + seconds or (not self._missed(stolen) and time.monotonic() < began + REACHED_WITHIN):
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)
        return bool(stolen)

    def _missed(self, messages: list[Any]) -> bool:
        """Does a task of these messages wait for one that will not come?"""
        ids = [id_ for message in messages for id_ in _ids(message)]
        return bool(self._count("id = ANY (CAST(:ids AS uuid[])) AND status = 'queued'", ids=ids))

    def _vanish(self, fault: Fault) -> bool:
        """Queues are deleted while they are empty, just before messages are sent to them: only what the broker answers tells of it.

        A dispatcher that looks at the queues just then finds out by itself. With the guard left in, it always finds out.
        """
        tries = UNNOTICED_TRIES if fault.detail == UNNOTICED else 1
        try:
            vanished = False
            while tries and not (vanished and self._are_gone()):
                vanished, tries = reached(self._vanished), tries - 1
            return vanished
        finally:
            self._pace.paused = False

    def _vanished(self) -> bool:
        self._pace.paused = True
        if not reached(lambda: not self._count("status IN ('pending', 'queued')")):
            return False
        with self._stops.halted():
            # What came meanwhile all the same, a retry say, is robbed.
            began = time.time()
            delete(self._ground.broker.url, self._roles.queues[-1])
            if delete(self._ground.broker.url, *self._roles.queues[:-1]):
                self._records.faults.write("began", SERVERS, "queues_deleted", "by+the+way", at=began)
                self._records.faults.write("over", SERVERS, "queues_deleted", "by+the+way")
            # RabbitMQ answers before the last of a quorum queue is gone, and until then a message to it is an internal error.
            wait(0.3)
            self._pace.paused = False
            return reached(lambda: self._count("status = 'queued'") > 5, self._plan.silence / 2)

    def _are_gone(self) -> bool:
        """Is a queue still missing that tasks were sent to?"""
        lanes = self._database.rows("SELECT DISTINCT queue, lane FROM tasks WHERE status = 'queued'")
        return any(depth(self._ground.broker.url, f"{self._roles.prefix}.{row.queue}.{row.lane}") is None for row in lanes)

    def _duplicate(self, seconds: float = 5.0) -> bool:
        """Two more messages for each task that moves meanwhile, until one had ended; and forged and garbled ones."""
        settings = Settings(
            database=DatabaseSettings(url=SecretStr(self._ground.postgres.url)),
            broker=BrokerSettings(url=SecretStr(self._ground.broker.url), prefix=self._roles.prefix),
        )
        publisher = Publisher(create_celery(settings), settings.broker)
        began, seen, too_late = time.monotonic(), self._database.value("SELECT clock_timestamp()"), 0
        while time.monotonic() < began + seconds or (not too_late and time.monotonic() < began + REACHED_WITHIN):
            moved = self._database.rows(_MOVED, seen=seen)
            for row in moved:
                sent = self._publish(publisher, row.queue, row.lane, [row.id, row.id, uuid4()])
                too_late += sent if row.ended else 0
            seen = moved[-1].updated_at if moved else seen
            wait(0.05)
        publisher.close()
        self._garble()
        return too_late > 0

    def _publish(self, publisher: Publisher, queue: str, lane: str, ids: list[UUID]) -> int:
        try:
            publisher.publish(queue, lane, [[Hint(id_, "chaos.copy", 5)] for id_ in ids])
        except BrokerAway:
            return 0
        return len(ids)

    def _garble(self) -> None:
        """What no Taskyard has sent: not JSON, wrong arguments, unknown tasks, no headers."""
        bodies: list[Any] = ["{", "null", '[["not-a-uuid"], {}, {}]', "[[[1, 2]], {}, {}]", '[[["\\u0000"]], {}, {}]', f'[[["{uuid4()}"]], {{}}, {{}}]']
        headers: list[dict[str, Any]] = [{}, {"task": "taskyard.run", "id": "x"}, {"task": "os.system", "id": str(uuid4())}]
        with suppress(OSError, *_broker_errors(self._ground.broker.url)), Connection(self._ground.broker.url) as connection:
            producer = connection.Producer()
            for queue in self._roles.queues:
                for body in bodies:
                    for header in headers:
                        producer.publish(body, routing_key=queue, exchange="", headers=header, content_type="application/json", content_encoding="utf-8")

    def _cut_wires(self) -> bool:
        for _ in range(3):
            self._ground.to_broker.cut()
            wait(0.2)
            self._ground.to_postgres.cut()
            wait(0.2)
        return True

    def _hang_wires(self) -> bool:
        """Nobody answers, and nobody hangs up. Longer than a confirm may take, shorter than the silence limit."""
        self._ground.to_broker.hang()
        self._ground.to_postgres.hang()
        wait(self._plan.silence * 0.8)
        self._ground.to_broker.heal()
        self._ground.to_postgres.heal()
        return True

    # --- clients ---

    def _loop(self) -> bool:
        """Submit and wait, with eight clients at once, while roles and servers have their faults."""
        self._loops += 1
        plan = loop(self._plan, self._loops)
        clients = clients_of(plan, Pace(plan), list(self._roles.ports.values()), self._records.clients)
        for client in clients:
            client.start()
        ended = reached(lambda: not any(client.is_alive() for client in clients), LOOP_WITHIN)
        for client in clients:
            client.stopping.set()
            client.join()
        return ended and not any(client.failure for client in clients)

    # --- roles ---

    def _terminate(self, fault: Fault) -> bool:
        before = self._roles.ended[fault.lane]
        self._roles.signal(fault.lane, signal.SIGTERM)
        return reached(lambda: self._roles.ended[fault.lane] > before)

    def _kill(self, fault: Fault) -> bool:
        """SIGKILL, for a worker in the middle of a run; then the role ends by itself at each failpoint in turn, and is started again."""
        at_work = fault.lane not in WORKERS or self._stops.at_work(fault.lane)
        chance = random.Random(f"{self._plan.seed} {fault}")
        self._roles.arm(fault.lane, {point: f"exit@{chance.randint(1, 3)}" for point in fault.detail.split()})
        left = self._provoked(fault.lane)
        while left and reached(lambda: self._provoked(fault.lane) < left):  # noqa: B023  # called before the next turn
            left = len(self._roles.armed(fault.lane))
        # What did not end the role itself, but a child of it, is still armed there.
        if fault.detail:
            self._roles.arm(fault.lane, {})
        return at_work and not left

    def _provoked(self, role: str) -> int:
        """How many failpoints are left. Nothing is withdrawn while the broker takes everything, so for that its wire is cut."""
        left = self._roles.armed(role)
        if "withdraw.committed" in left:
            self._ground.to_broker.cut()
            wait(0.3)
        return len(left)

    def _count(self, where: str, **values: Any) -> int:
        return int(self._database.value(f"SELECT count(*) FROM tasks WHERE {where}", **values))

    def _kill_child(self, fault: Fault) -> bool:
        chance = random.Random(f"{self._plan.seed} {fault}")
        return reached(lambda: self._killed_one(self._roles.handlers_of(fault.lane), chance))

    def _killed_one(self, handlers: list[psutil.Process], chance: random.Random) -> bool:
        """Each may end before it is killed: then another one is tried."""
        with suppress(psutil.NoSuchProcess):
            if handlers:
                chance.choice(handlers).kill()
                return True
        return False


_MOVED = "SELECT id, type, queue, lane, ended, updated_at FROM tasks WHERE updated_at > :seen ORDER BY updated_at LIMIT 500"


def _broker_errors(url: str) -> tuple[type[Exception], ...]:
    connection = Connection(url)
    return (*connection.connection_errors, *connection.channel_errors)


def _ids(message: Any) -> list[str]:
    """The tasks that a message is for. The harness sends garbled ones too, and steals them like any other."""
    with suppress(Exception):
        return [str(UUID(id_)) for id_ in message.payload[0][0]]
    return []
