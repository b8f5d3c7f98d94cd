"""What a process died of, as well as the system tells it: a signal, an exit status, and whether memory had run out."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OOM = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def describe(status: int, *, signalled: bool, out_of_memory: bool) -> str:
    """``status`` is a signal's number if the process was ``signalled``, or else its exit status."""
    if not signalled:
        return f"exit status {status}"
    name = signal.Signals(status).name if status in signal.valid_signals() and status in set(signal.Signals) else f"signal {status}"
    if status != signal.SIGKILL:
        return name
    return f"{name}, out of memory" if out_of_memory else name


class OutOfMemory:
    """Notices that the kernel has killed for lack of memory: in this process's cgroup, or on the machine where it can't be told.

    A best effort: a kill by somebody else at the same moment looks alike, and without /sys/fs/cgroup and /proc/vmstat nothing is noticed.
    """

    def __init__(self, read: Callable[[], int | None] | None = None) -> None:
        self._read = read or kills
        self._seen = self._read()

    def happened(self) -> bool:
        """Has it killed since the last look?"""
        before, self._seen = self._seen, self._read()
        return before is not None and self._seen is not None and self._seen > before


def kills() -> int | None:
    """How often the kernel has killed for lack of memory; None if nothing tells."""
    counts = [count for path in (*_cgroup_files(), Path("/proc/vmstat")) if (count := _count(path)) is not None]
    # A container without a memory limit is killed by the machine's lack of it, which its own cgroup counts too.
    return counts[0] if counts else None


def _cgroup_files() -> list[Path]:
    """Version 2 has one hierarchy, version 1 one for memory. Inside a container its own cgroup may be mounted as the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [_CGROUPS / path.lstrip("/") / "memory.events", _CGROUPS / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control", _CGROUPS / "memory" / "memory.oom_control"]
    return found


def _count(path: Path) -> int | None:
    try:
        found = _OOM.search(path.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
