"""What all peers share: the witness of a task's start, and a loop that enqueues what the benchmarks ask for on standard input."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable


def started(number: int) -> None:
    """Note the start, exactly as Taskyard's tasks do."""
    line = f"{number} {time.time_ns()}\n".encode()
    descriptor = os.open(os.environ["BENCH_WITNESS"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line)
    os.close(descriptor)


def serve(enqueue: dict[str, Callable[[int], object]]) -> None:
    """Read lines ``KIND FIRST COUNT``: enqueue that many numbered tasks, and answer with the time (ns) at which all were accepted."""
    print("ready", flush=True)
    for line in sys.stdin:
        kind, first, count = line.split()
        for number in range(int(first), int(first) + int(count)):
            enqueue[kind](number)
        print(time.time_ns(), flush=True)
