"""`taskyard up`: how long it takes to be ready, and what it costs to have it running."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from benchmarks.processes import Group, cpu, pss, until
from benchmarks.run import Run

READY = "Taskyard is ready."
SIDE = "Taskyard up, embedded"
#: Words of a command line that tell which part a process below `taskyard up` is.
PARTS = {"serve": "web", "dispatcher": "dispatcher", "worker": "worker", "taskyard_worker.zygote": "worker", "postgres": "PostgreSQL", "redis-server": "Redis"}


def up(run: Run) -> None:
    """A first start with an empty folder, then starts with the data of the one before; the last one is watched while idle."""
    data = run.fresh("data")
    data.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKYARD_", "CELERY_", "POSTGRES_", "DATABASE_"))}
    # An empty file: nothing of the caller's own configuration gets in.
    configuration = data / "taskyard.toml"
    configuration.touch()
    group = Group(data, kept | {"TASKYARD_CONFIG": str(configuration)})
    for number in range(run.size.rounds + 1):
        run.say(f"up: start {number + 1}")
        seconds = _start(group, number)
        run.figures.add("up", "later start" if number else "first start", SIDE, "ready after", "s", seconds)
        if number == run.size.rounds:
            _watch(run, group, f"up-{number}")
        group.stop()


def _start(group: Group, number: int) -> float:
    name = f"up-{number}"
    began = time.monotonic()
    group.start(name, sys.executable, "-u", "-m", "taskyard", "up", "--port", "0", "--data-dir", str(group.folder / "taskyard"))
    until(lambda: READY in group.log(name), "`taskyard up`", 90)
    return time.monotonic() - began


def _watch(run: Run, group: Group, name: str) -> None:
    """Memory and CPU of each part while nothing is asked of it."""
    run.say("up: idle")
    time.sleep(min(3.0, run.size.idle))
    parts = _parts(group.family(name))
    before = {part: cpu(processes) for part, processes in parts.items()}
    began = time.monotonic()
    time.sleep(run.size.idle)
    took = time.monotonic() - began
    used = {part: 100 * (cpu(processes) - before[part]) / took for part, processes in parts.items()}
    memory = {part: pss(processes) / 2**20 for part, processes in parts.items()}
    for part in parts:
        run.figures.add("up", f"idle: {part}", SIDE, "memory (PSS)", "MiB", memory[part])
        run.figures.add("up", f"idle: {part}", SIDE, "of one core", "%", used[part])
    run.figures.add("up", "idle: all", SIDE, "memory (PSS)", "MiB", sum(memory.values()))
    run.figures.add("up", "idle: all", SIDE, "of one core", "%", sum(used.values()))


def _parts(processes: list[psutil.Process]) -> dict[str, list[psutil.Process]]:
    found: dict[str, list[psutil.Process]] = {}
    for process in processes:
        words = [Path(word).name for word in process.cmdline()]
        part = next((part for word, part in PARTS.items() if word in words or any(w.startswith(f"{word}:") for w in words)), "up")
        found.setdefault(part, []).append(process)
    return found
