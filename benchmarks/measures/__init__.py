"""What is measured, by name and in order. A new measure is a function in a module here, and a line below."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measures.cost import cost
from benchmarks.measures.submit import submit
from benchmarks.measures.tasks import concurrency, latency, work
from benchmarks.measures.up import up
from benchmarks.run import Run

MEASURES: dict[str, Callable[[Run], None]] = {
    "submit": submit,
    "latency": latency,
    "work": work,
    "concurrency": concurrency,
    "cost": cost,
    "up": up,
}
