"""What is measured, by name and in order. A new measure is a function in a module here, and a line below."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measures.cost import cost
from benchmarks.measures.end_to_end import end_to_end
from benchmarks.measures.growth import growth
from benchmarks.measures.submit import submit
from benchmarks.measures.tasks import concurrency, latency, mixed, work
from benchmarks.measures.up import up
from benchmarks.run import Run

MEASURES: dict[str, Callable[[Run], None]] = {
    "submit": submit,
    "work": work,
    "end-to-end": end_to_end,
    "latency": latency,
    "concurrency": concurrency,
    "mixed": mixed,
    "growth": growth,
    "cost": cost,
    "up": up,
}
