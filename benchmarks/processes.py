"""Processes under measurement: started with their output in a file, watched, stopped; and the witness that their tasks write."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent


class NotInTime(Exception):
    """Something that was waited for did not come."""


def until(condition: Callable[[], object], what: str, seconds: float = 120.0, every: float = 0.01) -> None:
    """Wait for a condition. Raises NotInTime."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotInTime(f"{what} did not come within {seconds:g} s")
        time.sleep(every)


class Witness:
    """The file to which tasks write their number and the time (ns) of their start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def clear(self) -> None:
        """Forget what was written."""
        self.path.write_bytes(b"")

    def starts(self) -> list[int]:
        """Times of all starts, in ns."""
        return [int(line.split()[1]) for line in self.path.read_text().splitlines() if line.count(" ") == 1]

    def by_number(self) -> dict[int, int]:
        """Times of all starts, in ns, by the task's number."""
        return {int(number): int(at) for number, _, at in (line.partition(" ") for line in self.path.read_text().splitlines())}

    def wait(self, count: int, seconds: float = 120.0) -> list[int]:
        """Wait for so many starts, and give their times. Looks at the file's size first: that costs those who work nothing."""
        least = count * 22
        until(lambda: self.path.stat().st_size >= least and len(self.starts()) >= count, f"the start of {count} tasks", seconds, 0.001 if count == 1 else 0.02)
        return self.starts()


class Group:
    """Some processes with one environment, stopped together."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start one; its output goes to a file, but what it prints when it is driven can be read."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE if name == "driver" else log, stderr=log
            )
        return self.processes[name]

    def log(self, name: str) -> str:
        """What one has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def family(self, name: str) -> list[psutil.Process]:
        """A process and all below it."""
        process = psutil.Process(self.processes[name].pid)
        return [process, *process.children(recursive=True)]

    def stop(self) -> None:
        """SIGTERM to all, and SIGKILL to the families of those that take longer than their grace."""
        families = {name: self.family(name) for name, process in self.processes.items() if process.poll() is None}
        for name in families:
            self.processes[name].terminate()
        for name, family in families.items():
            try:
                self.processes[name].wait(20)
            except subprocess.TimeoutExpired:
                self.processes[name].kill()
                self.processes[name].wait()
            for member in family:
                if member.is_running():
                    member.kill()
        self.processes.clear()


def pss(processes: list[psutil.Process]) -> int:
    """Bytes of memory, with shared pages split among those who share them (Linux's smaps_rollup); resident bytes elsewhere."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of CPU that processes have used."""
    seconds = 0.0
    for process in processes:
        if process.is_running():
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
