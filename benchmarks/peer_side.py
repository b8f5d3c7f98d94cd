"""A peer under measurement: a worker, and a driver that enqueues, both in the environment that `make bench` makes for peers."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parts import Parts, scratch_database, sweep
from benchmarks.processes import ROOT, Group, NotInTime, Witness

ENVIRONMENT = ROOT / ".venv-bench" / "bin"
MODULE = "benchmarks.peers"


@dataclass(frozen=True)
class Peer:
    """What a peer is: its worker's command, what it can run, whether it keeps state in PostgreSQL, the queues it declares, whether it speaks to Redis."""

    name: str
    module: str
    worker: Callable[[str], list[str]]
    kinds: tuple[str, ...] = ("sync",)
    results: bool = False
    database: bool = False
    queues: tuple[str, ...] = ("{prefix}",)
    redis: bool = True


def _python(*arguments: str) -> list[str]:
    return [str(ENVIRONMENT / "python"), "-m", *arguments]


def celery_worker(app: str, prefix: str) -> list[str]:
    """The command of a Celery worker with a process for each core."""
    return _python("celery", "-A", app, "worker", "-c", str(os.cpu_count()), "-Q", prefix, "-n", f"{prefix}@%h", "-l", "WARNING")


def _celery(prefix: str) -> list[str]:
    return celery_worker(f"{MODULE}.celery_side", prefix)


def _dramatiq(prefix: str) -> list[str]:
    return _python("dramatiq", f"{MODULE}.dramatiq_side", "-p", str(os.cpu_count()), "-t", "8", "-Q", prefix)


def _taskiq(_: str) -> list[str]:
    return _python("taskiq", "worker", f"{MODULE}.taskiq_side:broker", "--workers", str(os.cpu_count()), "--no-configure-logging")


PEERS = (
    Peer("Celery, no results", "celery_side", _celery),
    Peer("Celery, results in PostgreSQL", "celery_side", _celery, results=True, database=True),
    Peer("Dramatiq, no state", "dramatiq_side", _dramatiq, queues=("{prefix}", "{prefix}.DQ", "{prefix}.XQ")),
    Peer("Procrastinate", "procrastinate_side", lambda _: _python(f"{MODULE}.procrastinate_side", "work"), ("sync", "async"), database=True, queues=()),
    Peer("Taskiq, no state", "taskiq_side", _taskiq, ("sync", "async"), queues=("{prefix}", "{prefix}.dead", "{prefix}.delay"), redis=False),
)


def peer_environment(parts: Parts, witness: Path, database: str | None) -> tuple[dict[str, str], str]:
    """The environment of a peer's processes, and the prefix of what it declares on the broker."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    added = {"BENCH_BROKER": parts.broker, "BENCH_PREFIX": prefix, "BENCH_WITNESS": str(Witness(witness).path), "PYTHONPATH": str(ROOT)}
    return os.environ | added | ({"BENCH_DATABASE": database} if database else {}), prefix


class PeerSide:
    """A peer that runs."""

    def __init__(self, peer: Peer, parts: Parts, database: str | None, folder: Path) -> None:
        self.name = f"{peer.name} ({'PostgreSQL' if not peer.queues else parts.name})"
        self.kinds = peer.kinds
        self._peer = peer
        self._parts = parts
        self.witness = Witness(folder / "witness")
        environment, self._prefix = peer_environment(parts, self.witness.path, database)
        if database and peer.results:
            environment["BENCH_RESULTS"] = f"db+{database.replace('postgresql://', 'postgresql+psycopg2://', 1)}"
        self.group = Group(folder, environment)

    def start(self) -> None:
        """Start driver and worker, and let one task through. Raises NotInTime with the worker's last words."""
        if not (self._peer.redis or self._parts.broker.startswith("amqp")):
            raise NotInTime(f"{self._peer.name} is measured on RabbitMQ only")
        driver = self.group.start("driver", *_python(f"{MODULE}.{self._peer.module}"))
        assert driver.stdout is not None
        if driver.stdout.readline().strip() != b"ready":
            raise NotInTime(f"{self.name} did not start: {self.group.log('driver')[-500:]}")
        self.group.start("worker", *self._peer.worker(self._prefix))
        try:
            self.one("sync")
        except NotInTime as error:
            raise NotInTime(f"{self.name}: {error}; it said: {self.group.log('worker')[-500:]}") from error

    def stop(self) -> None:
        """Stop both, and delete the broker's queues."""
        self.group.stop()
        sweep(self._parts.broker, [queue.format(prefix=self._prefix) for queue in self._peer.queues], self._prefix)

    def one(self, kind: str) -> float:
        """Seconds from enqueued to started."""
        self.witness.clear()
        enqueued = self._enqueue(kind, 1)
        return (self.witness.wait(1)[0] - enqueued) / 1e9

    def work(self, kind: str, count: int) -> float:
        """Seconds from the first start to the last of a backlog; the worker is halted while it is filled."""
        self.witness.clear()
        family = self.group.family("worker")
        for process in family:
            process.send_signal(signal.SIGSTOP)
        try:
            self._enqueue(kind, count)
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)
        starts = self.witness.wait(count, 300)
        return (max(starts) - min(starts)) / 1e9

    def _enqueue(self, kind: str, count: int) -> int:
        driver = self.group.processes["driver"]
        assert driver.stdin is not None
        assert driver.stdout is not None
        # A driver that has ended is told by its empty answer.
        with suppress(BrokenPipeError):
            driver.stdin.write(f"{kind} 1 {count}\n".encode())
            driver.stdin.flush()
        answer = driver.stdout.readline()
        if not answer:
            raise NotInTime(f"{self.name}: its driver ended: {self.group.log('driver')[-500:]}")
        return int(answer)


def missing() -> str | None:
    """Why peers can't be measured, if so."""
    if not (ENVIRONMENT / "python").exists():
        return f"Peers are left out: there is no {ENVIRONMENT.parent.name}; `make bench` installs it."
    found = subprocess.run(_python("pip", "list", "--format=freeze"), capture_output=True, text=True, check=False).stdout
    lacking = [line.split("[")[0].split("==")[0] for line in _required() if line.split("[")[0].split("==")[0].lower() not in found.lower()]
    return f"Peers are left out: {', '.join(lacking)} missing in {ENVIRONMENT.parent.name}; `make bench` installs them." if lacking else None


def _required() -> list[str]:
    lines = (ROOT / "benchmarks" / "requirements-peers.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@contextmanager
def peer(peer: Peer, parts: Parts, folder: Path) -> Iterator[PeerSide]:
    """A peer that runs, on a scratch database where it needs one."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        database = stack.enter_context(scratch_database(parts.postgres)) if peer.database else None
        side = PeerSide(peer, parts, database, folder)
        stack.callback(side.stop)
        side.start()
        yield side
