"""Taskyard under measurement: its real roles as processes, on a database and with queues of their own."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import text

from benchmarks.parts import Parts, engine_of, scratch_database, sweep
from benchmarks.processes import ROOT, Group, NotInTime, Witness, until
from taskyard import backlog, lifecycle
from taskyard.channels import announce
from taskyard.plugins import load_plugins
from taskyard.submission import prepare
from taskyard.up.plan import free_port

PLUGIN = Path(__file__).parent / "plugin"
TYPES = {"sync": "bench.sync", "async": "bench.async", "sleep": "bench.sleep", "mixed": "bench.mixed", "alone": "bench.alone"}
ASYNC = ("async", "sleep")
#: The benchmark's pause of a queue knows nothing of silent workers.
SILENCE = 15.0
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SWEPT = re.compile(r"tasks\.swept.*?\bcount=(\d+)")


class TaskyardSide:
    """One installation. Rounds are submitted in the database, single tasks by HTTP."""

    kinds: tuple[str, ...] = ("sync", "async")

    def __init__(self, parts: Parts, database: str, folder: Path, settings: Mapping[str, str]) -> None:
        self.name = f"Taskyard, {parts.name}"
        self.parts = parts
        self.prefix = f"bench-{uuid.uuid4().hex[:8]}"
        self.port = free_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = engine_of(database)
        self.witness = Witness(folder / "witness")
        self.group = Group(folder, environment(parts.broker, database, self.prefix, self.witness) | dict(settings))
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

    def swept(self) -> int:
        """Tasks whose message was lost, by the dispatcher's log so far. Without faults there are none."""
        return sum(int(count) for count in SWEPT.findall(COLOURS.sub("", self.group.log("dispatcher"))))

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
        since = self._release(kind, [{"number": number} for number in range(count)])
        self.witness.wait(count, 300)
        done = text("SELECT extract(epoch FROM max(finished_at) - min(started_at)), count(*) FROM tasks WHERE started_at >= :since AND ended = 'succeeded'")
        until(lambda: self._ended(done, since)[1] >= count, "the end of all tasks", 60, 0.05)
        return self._ended(done, since)[0]

    def waits(self, kind: str, seconds: Sequence[float]) -> list[float]:
        """Seconds from the line's start to each task's own, for tasks that take so many seconds."""
        self._release(kind, [{"number": number, "seconds": taken} for number, taken in enumerate(seconds)])
        began = time.time_ns()
        self.witness.wait(len(seconds), 300)
        starts = self.witness.by_number()
        until(lambda: not self._lives(), "the end of all tasks", max(seconds) + 60, 0.05)
        return [(starts[number] - began) / 1e9 for number in range(len(seconds))]

    def _release(self, kind: str, payloads: Sequence[dict[str, Any]]) -> datetime:
        """Fill the line while its queue is paused, and let it go; the moment of that, by the database's clock."""
        self.witness.clear()
        with self.engine.begin() as connection:
            backlog.pause(connection, "default", ["default"], SILENCE)
        self.fill(kind, payloads)
        with self.engine.begin() as connection:
            since: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            backlog.resume(connection, "default", ["default"], SILENCE)
            announce(connection, [("default", "async" if kind in ASYNC else "sync")])
        return since

    def _lives(self) -> bool:
        with self.engine.connect() as connection:
            return bool(connection.execute(text("SELECT EXISTS (SELECT FROM tasks WHERE ended IS NULL)")).scalar())

    def _ended(self, statement: object, since: object) -> tuple[float, int]:
        with self.engine.connect() as connection:
            seconds, count = connection.execute(statement, {"since": since}).one()  # type: ignore[call-overload]  # a text clause
        return float(seconds or 0), int(count)

    def fill(self, kind: str, payloads: Sequence[dict[str, Any]]) -> None:
        """Tasks in few commits: what is measured is the way out of the line, not into it."""
        for first in range(0, len(payloads), 500):
            new = [prepare(self._registry, {"type": TYPES[kind], "payload": payload}) for payload in payloads[first : first + 500]]
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
def taskyard(parts: Parts, folder: Path, *roles: str, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[TaskyardSide]:
    """An installation with these roles and settings (as environment variables), on a scratch database."""
    from taskyard_migrations.runner import upgrade

    folder.mkdir(parents=True)
    with scratch_database(parts.postgres) as database:
        upgrade(database)
        side = TaskyardSide(parts, database, folder, settings)
        try:
            side.start(*roles)
            yield side
        finally:
            side.stop()
