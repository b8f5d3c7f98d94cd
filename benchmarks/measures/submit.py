"""How fast tasks are taken: POST /tasks with one web process, beside a service that validates and answers and does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures import percentile
from benchmarks.parts import answers
from benchmarks.processes import ROOT, Group, NotInTime, until
from benchmarks.run import Run
from benchmarks.taskyard_side import taskyard
from taskyard.up.plan import free_port

CONNECTIONS = (1, 8, 32)
CEILING = "FastAPI that stores nothing"


def submit(run: Run) -> None:
    """Requests a second and their latency at 1, 8 and 32 connections. No dispatcher and no worker run meanwhile."""
    with taskyard(run.parts[0], run.fresh("taskyard"), "serve") as side, _ceiling(run) as ceiling:
        services = {side.name: side.url, CEILING: ceiling}
        for url in services.values():
            _load(url, 8, min(1.0, run.size.seconds))
        for number in range(run.size.rounds):
            for connections in CONNECTIONS:
                for name, url in services.items():
                    run.say(f"submit, round {number + 1}: {name}, {connections} connections")
                    _tell(run, f"{connections} connection{'s'[: connections > 1]}", name, *_load(url, connections, run.size.seconds))


def _tell(run: Run, case: str, name: str, rate: float, latencies: list[float]) -> None:
    run.figures.add("submit", case, name, "requests a second", "1/s", rate)
    run.figures.add("submit", case, name, "p50", "ms", percentile(latencies, 50) * 1000)
    run.figures.add("submit", case, name, "p99", "ms", percentile(latencies, 99) * 1000)


def _load(url: str, connections: int, seconds: float) -> tuple[float, list[float]]:
    command = [sys.executable, "-m", "benchmarks.load", f"{url}/api/v1/tasks", str(connections), str(seconds)]
    told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=seconds + 60).stdout)
    if told["refused"]:
        raise NotInTime(f"{told['refused']} of {len(told['latencies'])} requests were refused")
    return told["rate"], told["latencies"]


@contextmanager
def _ceiling(run: Run) -> Iterator[str]:
    port = free_port("127.0.0.1", 0)
    folder = run.fresh("ceiling")
    folder.mkdir()
    group = Group(folder, {"PYTHONPATH": str(ROOT)})
    try:
        group.start("ceiling", sys.executable, "-m", "benchmarks.noop_api", str(port))
        until(lambda: answers(f"http://127.0.0.1:{port}", port), "the ceiling")
        yield f"http://127.0.0.1:{port}"
    finally:
        group.stop()
