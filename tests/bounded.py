"""Python code in a process of its own, with an end to its processor time and memory: for what must not take for ever, on any machine."""

from __future__ import annotations

import resource
import subprocess
import sys

GIB = 1024**3


def run_bounded(code: str, *, cpu: int = 60, memory: int = GIB) -> str:
    """What the code prints. ``cpu`` is in seconds of processor time, ``memory`` in bytes of address space.

    Raises:
        AssertionError: it used more, or failed; with the last lines that it printed.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, preexec_fn=limit, check=False)  # no threads here
    assert ended.returncode == 0, f"ended with {ended.returncode} after {ended.stdout[-300:]!r}: {ended.stderr[-2000:]}"
    return ended.stdout
