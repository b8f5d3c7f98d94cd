"""Loads as the measures use them, and the services that they are sent to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.load import Load
from benchmarks.parts import answers, scratch_database, sweep
from benchmarks.peer_side import ENVIRONMENT, MODULE, celery_worker, peer_environment
from benchmarks.processes import ROOT, Group, NotInTime, until
from benchmarks.run import Run
from taskyard.up.plan import free_port

CEILING = "FastAPI that stores nothing"
USUAL = "the usual service"


@dataclass(frozen=True)
class Sent:
    """What a load came to: a rate a second, every latency in seconds, and how many requests were refused."""

    rate: float
    latencies: list[float]
    refused: int = 0


def send(load: Load, *, may_refuse: bool = False) -> Sent:
    """Send a load from a process of its own. Raises NotInTime if something was refused that may not be, or nothing was answered."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.load", load.told()], cwd=ROOT, capture_output=True, timeout=load.seconds + 180, check=False)
    if done.returncode:
        raise NotInTime(f"the load on {load.url} ended: {done.stderr.decode(errors='replace')[-500:]}")
    told = json.loads(done.stdout)
    if (told["refused"] and not may_refuse) or not told["latencies"]:
        raise NotInTime(f"{load.url} refused {told['refused']} requests, and answered {len(told['latencies'])}")
    return Sent(told["rate"], told["latencies"], told["refused"])


@contextmanager
def ceiling(run: Run) -> Iterator[str]:
    """The URL of a service with our models that stores nothing."""
    port = free_port("127.0.0.1", 0)
    folder = run.fresh("ceiling")
    folder.mkdir()
    group = Group(folder, {"PYTHONPATH": str(ROOT)})
    try:
        group.start("ceiling", sys.executable, "-m", "benchmarks.noop_api", str(port))
        yield _serving(group, "ceiling", port)
    finally:
        group.stop()


@contextmanager
def usual_service(run: Run, *, worker: bool) -> Iterator[str | None]:
    """The URL of the usual service, with its worker if it is to do what it takes; None where peers are left out."""
    if not run.peers:
        yield None
        return
    parts, folder = run.parts[0], run.fresh("usual")
    folder.mkdir()
    with scratch_database(parts.postgres) as database:
        added, prefix = peer_environment(parts, folder / "witness", database)
        group, port = Group(folder, added), free_port("127.0.0.1", 0)
        try:
            group.start("service", str(ENVIRONMENT / "python"), "-m", f"{MODULE}.usual_service", str(port))
            url = _serving(group, "service", port)
            if worker:
                group.start("worker", *celery_worker(f"{MODULE}.usual_service:celery", prefix))
                send(Load(url, 1, 0.1, "end"))
            yield url
        finally:
            group.stop()
            sweep(parts.broker, [prefix], prefix)


def _serving(group: Group, name: str, port: int) -> str:
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url, port), name)
    except NotInTime as error:
        raise NotInTime(f"{error}; it said: {group.log(name)[-500:]}") from error
    return url
