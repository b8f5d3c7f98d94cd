"""Taskyard under measurement: its real roles as processes, on a database and with queues of their own."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from benchmarks.parts import Parts, engine_of, scratch_database, sweep
from benchmarks.processes import ROOT, Group, NotInTime, Witness, until
from taskyard import backlog, lifecycle
from taskyard.channels import announce
from taskyard.plugins import load_plugins
from taskyard.submission import prepare
from taskyard.up.plan import free_port

PLUGIN = Path(__file__).parent / "plugin"
TYPES = {"sync": "bench.sync", "async": "bench.async", "sleep": "bench.sleep"}
#: The benchmark's pause of a queue knows nothing of silent workers.
SILENCE = 15.0


class TaskyardSide:
    """One installation. Rounds are submitted in the database, single tasks by HTTP."""

    kinds: tuple[str, ...] = ("sync", "async")

    def __init__(self, parts: Parts, database: str, folder: Path) -> None:
        self.name = f"Taskyard, {parts.name}"
        self.parts = parts
        self.prefix = f"bench-{uuid.uuid4().hex[:8]}"
        self.port = free_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = engine_of(database)
        self.witness = Witness(folder / "witness")
        self.group = Group(folder, environment(parts.broker, database, self.prefix, self.witness))
        if str(PLUGIN) not in sys.path:
            sys.path.append(str(PLUGIN))
        self._registry = load_plugins(only=["bench"])
        self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def start(self, *roles: str) -> None:
        """Start roles, and wait until they are ready. Raises NotInTime with their last words."""
        for role in roles:
            self.group.start(role, sys.executable, "-m", "taskyard", role, *(("--port", str(self.port)) if role == "serve" else ()))
        try:
            for role in roles:
                until(lambda role=role: self._is_ready(role), f"Taskyard's {role}")  # type: ignore[misc]  # mypy can't infer a lambda's default
        except NotInTime as error:
            raise NotInTime(f"{error}; it said: {self.group.log(roles[0])[-500:]}") from error

    def _is_ready(self, role: str) -> bool:
        if role == "serve":
            try:
                self._http.request("GET", "/health/ready")
                answer = self._http.getresponse()
                answer.read()
            except OSError:
                self._http.close()
                return False
            return answer.status == 200
        if role == "dispatcher":
            return "dispatcher.started" in self.group.log(role)
        with self.engine.connect() as connection:
            return bool(connection.execute(text("SELECT count(*) FROM workers")).scalar())

    def stop(self) -> None:
        """Stop all, and delete the broker's queues."""
        self._http.close()
        self.group.stop()
        self.engine.dispose()
        sweep(self.parts.broker, [f"{self.prefix}.default.sync", f"{self.prefix}.default.async", f"{self.prefix}.deliveries"], self.prefix)

    def one(self, kind: str) -> float:
        """Seconds from POST answered to handler started."""
        self.witness.clear()
        body = json.dumps({"type": TYPES[kind], "payload": {"number": 1}})
        # A connection of its own: the server closes one that was idle while other sides were measured.
        self._http.close()
        self._http.request("POST", "/api/v1/tasks", body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        answer.read()
        answered = time.time_ns()
        if answer.status != 201:
            raise NotInTime(f"POST answered {answer.status}")
        return (self.witness.wait(1)[0] - answered) / 1e9

    def work(self, kind: str, count: int) -> float:
        """Seconds from the first claim to the last finish of a backlog, by the database's clock."""
        self.witness.clear()
        with self.engine.begin() as connection:
            backlog.pause(connection, "default", ["default"], SILENCE)
        self._fill(kind, count)
        with self.engine.begin() as connection:
            since = connection.execute(text("SELECT clock_timestamp()")).scalar()
            backlog.resume(connection, "default", ["default"], SILENCE)
            announce(connection, [("default", "sync" if kind == "sync" else "async")])
        self.witness.wait(count, 120)
        done = text("SELECT extract(epoch FROM max(finished_at) - min(started_at)), count(*) FROM tasks WHERE started_at >= :since AND ended = 'succeeded'")
        until(lambda: self._ended(done, since)[1] >= count, "the end of all tasks", 60, 0.05)
        return self._ended(done, since)[0]

    def _ended(self, statement: object, since: object) -> tuple[float, int]:
        with self.engine.connect() as connection:
            seconds, count = connection.execute(statement, {"since": since}).one()  # type: ignore[call-overload]  # a text clause
        return float(seconds or 0), int(count)

    def _fill(self, kind: str, count: int) -> None:
        """Tasks in few commits: what is measured is the way out of the line, not into it."""
        for first in range(0, count, 500):
            numbers = range(first, min(first + 500, count))
            new = [prepare(self._registry, {"type": TYPES[kind], "payload": {"number": number}}) for number in numbers]
            with self.engine.begin() as connection:
                lifecycle.submit(connection, new)


def environment(broker: str, database: str, prefix: str, witness: Witness) -> dict[str, str]:
    """What the roles read. Nothing of the caller's own configuration gets in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKYARD_", "CELERY_", "POSTGRES_", "DATABASE_"))}
    return kept | {
        "DATABASE_URL": database,
        "CELERY_BROKER_URL": broker,
        "TASKYARD_BROKER__PREFIX": prefix,
        "TASKYARD_PLUGINS__ONLY": "bench",
        "TASKYARD_CONFIG": str(_no_configuration(witness.path.parent)),
        "BENCH_WITNESS": str(witness.path),
        "PYTHONPATH": f"{PLUGIN}{os.pathsep}{ROOT}",
    }


def _no_configuration(folder: Path) -> Path:
    path = folder / "taskyard.toml"
    path.touch()
    return path


@contextmanager
def taskyard(parts: Parts, folder: Path, *roles: str) -> Iterator[TaskyardSide]:
    """An installation with these roles, on a scratch database."""
    from taskyard_migrations.runner import upgrade

    folder.mkdir(parents=True)
    with scratch_database(parts.postgres) as database:
        upgrade(database)
        side = TaskyardSide(parts, database, folder)
        try:
            side.start(*roles)
            yield side
        finally:
            side.stop()
