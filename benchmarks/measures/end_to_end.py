"""The whole way: a task is submitted through HTTP, and that it has succeeded is read there."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.figures import percentile
from benchmarks.load import Load
from benchmarks.loads import USUAL, send, usual_service
from benchmarks.measures.sides import ROLES
from benchmarks.run import Run
from benchmarks.taskyard_side import TaskyardSide, taskyard

#: Clients of the closed loop, and most that the steady load may have on their way.
CLIENTS, ON_THEIR_WAY = 32, 256


def end_to_end(run: Run) -> None:
    """A closed loop, and then the steady state at half of what that came to. Taskyard's own way is to be asked to wait; it is polled too."""
    with ExitStack() as stack:
        side = stack.enter_context(taskyard(run.parts[0], run.fresh("taskyard"), *ROLES))
        usual = stack.enter_context(usual_service(run, worker=True))
        closed = Load("", CLIENTS, run.size.seconds, "end")
        loads = {f"{side.name}, Prefer: wait": replace(closed, url=side.url, waits=True), f"{side.name}, polled": replace(closed, url=side.url)}
        if usual:
            loads[f"{USUAL}, polled"] = replace(closed, url=usual)
        rates: dict[str, list[float]] = {name: [] for name in loads}
        for load in loads.values():
            send(replace(load, seconds=min(2.0, run.size.seconds)), may_refuse=True)
        for number in range(run.size.rounds):
            for name, load in loads.items():
                run.say(f"end to end, round {number + 1}: {name}, closed loop")
                rates[name].append(_tell(run, f"closed loop, {CLIENTS} clients", name, load))
            _tell_swept(run, side, f"closed loop, {CLIENTS} clients")
            for name, load in loads.items():
                rate = statistics.median(rates[name]) / 2
                run.say(f"end to end, round {number + 1}: {name}, {rate:.0f} a second")
                _tell(run, "steady, at half of that", name, replace(load, rate=rate, connections=ON_THEIR_WAY))
            _tell_swept(run, side, "steady, at half of that")


def _tell_swept(run: Run, side: TaskyardSide, case: str) -> None:
    """Tasks that have waited for the sweep since the start. Nothing goes wrong here, so there must be none."""
    swept = side.swept()
    run.figures.add("end-to-end", case, side.name, "tasks swept so far", "", swept)
    if swept:
        run.breaks(f"end-to-end: {side.name}: {swept} tasks waited for the sweep, and nothing had gone wrong ({case})")


def _tell(run: Run, case: str, name: str, load: Load) -> float:
    sent = send(load, may_refuse=name.startswith(USUAL))
    if sent.refused:
        run.note(f"end-to-end: {name} refused {sent.refused} requests, {case}; the {len(sent.latencies)} others count")
    run.figures.add("end-to-end", case, name, "tasks a second", "1/s", sent.rate)
    run.figures.add("end-to-end", case, name, "p50", "ms", percentile(sent.latencies, 50) * 1000)
    run.figures.add("end-to-end", case, name, "p99", "ms", percentile(sent.latencies, 99) * 1000)
    return sent.rate
