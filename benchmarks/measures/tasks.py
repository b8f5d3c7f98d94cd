"""How fast tasks run: one on an idle system, a backlog, and many that wait at once."""

from __future__ import annotations

import random
import time

from benchmarks.measures.sides import ROLES, Side, all_sides
from benchmarks.processes import NotInTime
from benchmarks.run import Run
from benchmarks.taskyard_side import taskyard

#: Tasks of the first round, which warms a side up and tells how large the others are to be.
FIRST = 200


def latency(run: Run) -> None:
    """From accepted (POST answered, `delay()` returned) to the first line of the handler, on an idle system."""
    with all_sides(run) as sides:
        cases = [(side, kind) for side in sides for kind in side.kinds]
        for side, kind in cases:
            side.one(kind)
        for number in range(run.size.rounds):
            for side, kind in cases:
                run.say(f"latency, round {number + 1}: {side.name}, {kind}")
                samples = [_idle_then_one(side, kind) for _ in range(run.size.samples)]
                run.figures.add_samples("latency", f"{kind} handler", side.name, "accepted to started", "ms", [seconds * 1000 for seconds in samples])


def _idle_then_one(side: Side, kind: str) -> float:
    # Not in step with any tick or poll.
    time.sleep(random.uniform(0.02, 0.06))
    return side.one(kind)


def work(run: Run) -> None:
    """A backlog of tasks that do nothing, from the first claim to the last finish."""
    with all_sides(run) as sides:
        counts: dict[tuple[str, str], int] = {}
        for number in range(run.size.rounds + 1):
            for side in list(sides):
                for kind in side.kinds:
                    count = counts.get((side.name, kind), min(FIRST, run.size.backlog(FIRST)))
                    run.say(f"work, {f'round {number}' if number else 'first round'}: {side.name}, {count} {kind} tasks")
                    try:
                        rate = count / side.work(kind, count)
                    except NotInTime as error:
                        run.leave_out(f"work: {side.name}: {error}")
                        sides.remove(side)
                        break
                    if number:
                        run.figures.add("work", f"{kind} no-op", side.name, "tasks a second", "1/s", rate)
                    else:
                        counts[side.name, kind] = run.size.backlog(rate)


def concurrency(run: Run) -> None:
    """Async tasks that sleep for a second, on one worker with its defaults: from the first start to the last finish."""
    for parts in run.parts:
        with taskyard(parts, run.fresh("taskyard"), *ROLES[1:]) as side:
            for number in range(min(2, run.size.rounds)):
                run.say(f"concurrency, round {number + 1}: {side.name}")
                seconds = side.work("sleep", run.size.sleepers)
                run.figures.add("concurrency", f"{run.size.sleepers} tasks of sleep(1)", side.name, "first start to last finish", "s", seconds)
