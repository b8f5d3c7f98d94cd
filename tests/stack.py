"""A whole Taskyard for tests: the real roles as processes, on a database and with queues of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import Engine, RowMapping, create_engine, make_url, text

from taskyard import lifecycle
from taskyard.channels import announce
from taskyard.plugins import load_plugins
from taskyard.submission import prepare
from tests.broker import forget
from tests.databases import cloned as cloned

TESTBED = Path(__file__).parent / "system" / "testbed"
#: Limits that make what takes half a minute in production take seconds.
QUICK = {
    "TASKYARD_DISPATCH__WORKER_SILENCE": "4",
    "TASKYARD_WORKER__HEARTBEAT": "0.3",
    "TASKYARD_DISPATCH__TICK": "0.2",
    "TASKYARD_DISPATCH__SWEEP_AFTER": "1",
    "TASKYARD_BROKER__CONFIRM_TIMEOUT": "1",
    "TASKYARD_DATABASE__STATEMENT_TIMEOUT": "2",
}
TERMINAL = ("succeeded", "failed", "cancelled", "expired")


#: Seconds that a test waits for a condition. Generous, because a busy machine is no fault: a condition that holds ends the wait at once.
PATIENCE = 90.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "the condition") -> Any:
    """Wait until a condition gives something true, and give that."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.01)
    return value


@dataclass(frozen=True, slots=True)
class Gate:
    """Keeps the tasks of ``t.gated``, ``t.agated`` and ``t.abusy`` running until the test opens it."""

    path: Path

    def payload(self, word: str = "") -> dict[str, str]:
        """The payload of a task that waits here."""
        return {"path": str(self.path), "word": word}

    def open(self) -> None:
        """Let the waiting tasks end."""
        self.path.touch()


class Stack:
    """Roles that run against one database and one prefix on a broker."""

    def __init__(self, database_url: str, broker_url: str, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.witness_file = folder / "witness.log"
        self.witness_file.touch()
        self.prefix = f"t{uuid.uuid4().hex[:10]}"
        self.engine: Engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TASKYARD_") and k != "DATABASE_URL"},
            "DATABASE_URL": database_url,
            "CELERY_BROKER_URL": broker_url,
            "TASKYARD_BROKER__PREFIX": self.prefix,
            # No load balancer of a test has to notice a stop.
            "TASKYARD_API__DRAIN_DELAY": "0",
            "PYTHONPATH": str(TESTBED),
            "TESTBED_LOG": str(self.witness_file),
            **settings,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # The tests' own view of the testbed's handlers, for validation as the API does it.
        if str(TESTBED) not in sys.path:
            sys.path.append(str(TESTBED))
        self.registry = load_plugins(only=["testbed"])

    def start(self, name: str, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a role; its output goes to a file in the folder."""
        line = [sys.executable, "-m", *(command or ("taskyard", name))]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(line, env={**self.env, **(env or {})}, stdout=log, stderr=log, cwd=self.folder)
        self.processes[name] = process
        return process

    def gate(self) -> Gate:
        """A closed gate. A test opens it when what must happen meanwhile has happened."""
        return Gate(self.folder / f"gate-{uuid.uuid4().hex}")

    def log(self, name: str) -> str:
        """What a role has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def workers(self) -> int:
        """Workers that are known."""
        return int(self.value("SELECT count(*) FROM workers"))

    def value(self, statement: str, **values: Any) -> Any:
        """One value from the database."""
        with self.engine.connect() as connection:
            return connection.execute(text(statement), values).scalar()

    def ready(self, workers: int = 1) -> Stack:
        """Wait until so many workers are known, and the dispatcher listens."""
        until(lambda: self.workers() >= workers, 60, f"{workers} worker(s)")
        until(lambda: "dispatcher" not in self.processes or "dispatcher.started" in self.log("dispatcher"), 60, "the dispatcher")
        return self

    def submit(self, type_: str, payload: Any = None, **fields: Any) -> UUID:
        """Submit a task as the API does."""
        return self.submit_all([(type_, payload, fields)])[0]

    def submit_as(self, **more: Any) -> UUID:
        """Submit a task with what only the API's caller can ask for."""
        task = replace(prepare(self.registry, {"type": "t.echo", "payload": {"word": "x"}}), **more)
        with self.engine.begin() as connection:
            lifecycle.submit(connection, [task])
            announce(connection, {(task.queue, task.lane)})
        return task.id

    def submit_all(self, wanted: list[tuple[str, Any, dict[str, Any]]]) -> list[UUID]:
        """Submit tasks in one commit."""
        new = [prepare(self.registry, {"type": type_, "payload": payload or {}, **fields}) for type_, payload, fields in wanted]
        with self.engine.begin() as connection:
            lifecycle.submit(connection, new)
            announce(connection, {(task.queue, task.lane) for task in new})
        return [task.id for task in new]

    def task(self, id_: UUID) -> RowMapping:
        """A task as it stands."""
        with self.engine.connect() as connection:
            return connection.execute(text("SELECT * FROM tasks WHERE id = :id"), {"id": id_}).mappings().one()

    def wait(self, id_: UUID, *statuses: str, seconds: float = PATIENCE) -> RowMapping:
        """Wait until a task is in one of these statuses (by default: has ended)."""
        wanted = statuses or TERMINAL
        until(lambda: self.task(id_)["status"] in wanted, seconds, f"task {id_} to be {wanted} (it is {self.task(id_)['status']})")
        return self.task(id_)

    def events(self, id_: UUID) -> list[str]:
        """The types of a task's events, oldest first."""
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT type FROM events WHERE task_id = :id ORDER BY id"), {"id": id_}).scalars())

    def cancel(self, id_: UUID) -> None:
        """Cancel a task as the API does."""
        with self.engine.begin() as connection:
            lifecycle.cancel(connection, "default", id_)

    def witnessed(self, *words: object) -> list[list[str]]:
        """The witness file's lines that have all these words, split; the first word is the time."""
        wanted = set(map(str, words))
        return [parts for line in self.witness_file.read_text().splitlines() if wanted <= set(parts := line.split())]

    def family(self, name: str) -> list[psutil.Process]:
        """A role's process and all below it."""
        process = psutil.Process(self.processes[name].pid)
        return [process, *process.children(recursive=True)]

    def stop(self, name: str, how: int = signal.SIGTERM, seconds: float = 40) -> int:
        """Stop a role; answers its exit code."""
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Celery's worker then logs what each of its threads does.
            said = len(self.log(name))
            process.send_signal(signal.SIGUSR1)
            with suppress(AssertionError):
                until(lambda: len(self.log(name)) > said or process.poll() is not None, 5)
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end within {seconds} s. The end of its log:\n{self.log(name)[-20000:]}") from None

    def close(self) -> None:
        """Stop everything."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        with self.engine.connect() as connection:
            used = set(connection.execute(text("SELECT DISTINCT queue FROM tasks")).scalars())
        forget(self.env["CELERY_BROKER_URL"], self.prefix, {*used, *(handler.queue for handler in self.registry.handlers.values())})
        self.engine.dispose()
