"""How fast tasks run: one on an idle system, a backlog, many that wait at once, and quick ones among slow ones."""

from __future__ import annotations

import random
import time

from benchmarks.figures import percentile
from benchmarks.measures.sides import ROLES, Side, all_sides
from benchmarks.processes import NotInTime
from benchmarks.run import Run
from benchmarks.taskyard_side import TaskyardSide, taskyard

#: Tasks of a peer's first round, which warms it up and tells how large the others are to be.
FIRST = 200
#: Tasks of ours that warm up: so many that the dispatcher knows how long they take, and packs them.
WARM = 2000


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
    """A backlog of tasks that do nothing, from the first claim to the last finish (of peers: to the last start).

    Taskyard's has the size that is asked for. A peer's is as large as it works off in the time of one load, told by a first round: its
    rate does not depend on the backlog.
    """
    with all_sides(run) as sides:
        counts: dict[tuple[str, str], int] = {}
        for number in range(run.size.rounds + 1):
            for side in list(sides):
                for kind in side.kinds:
                    count = counts.get((side.name, kind)) or (min(WARM, run.size.tasks) if isinstance(side, TaskyardSide) else min(FIRST, run.size.tasks))
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
                        counts[side.name, kind] = run.size.tasks if isinstance(side, TaskyardSide) else run.size.backlog(rate)
        for (name, kind), count in counts.items():
            run.note(f"work: {name}, {kind}: a backlog of {count:,} tasks")


def concurrency(run: Run) -> None:
    """Async tasks that sleep for a second, on one worker with its defaults: from the first start to the last finish."""
    for parts in run.parts:
        with taskyard(parts, run.fresh("taskyard"), *ROLES[1:]) as side:
            for number in range(min(2, run.size.rounds)):
                run.say(f"concurrency, round {number + 1}: {side.name}")
                seconds = side.work("sleep", run.size.sleepers)
                run.figures.add("concurrency", f"{run.size.sleepers:,} tasks of sleep(1)", side.name, "first start to last finish", "s", seconds)


#: Slots of the mixed queue's worker.
SLOTS = 8


def mixed(run: Run) -> None:
    """A line of tasks of one type that take a millisecond, but for one in a hundred: how long the short ones wait, from the line's
    start to their own; and the same of a type whose tasks each travel alone.
    """
    with taskyard(run.parts[0], run.fresh("taskyard"), "dispatcher", "worker", settings={"TASKYARD_WORKER__PROCESSES": str(SLOTS)}) as side:
        kinds = {"mixed": side.name, "alone": f"{side.name}, bundle=1"}
        for kind in kinds:
            side.waits(kind, [0.001] * SLOTS * 10)
        seconds = [run.size.slow if number % 100 == 50 else 0.001 for number in range(run.size.mixed)]
        case = f"{run.size.mixed:,} tasks of 1 ms, 1 in 100 of {run.size.slow:g} s, {SLOTS} slots"
        for number in range(run.size.rounds):
            for kind, name in kinds.items():
                run.say(f"mixed, round {number + 1}: {name}")
                waits = sorted(wait for wait, own in zip(side.waits(kind, seconds), seconds, strict=True) if own == 0.001)
                run.figures.add("mixed", case, name, "p50 wait of the short ones", "s", percentile(waits, 50))
                run.figures.add("mixed", case, name, "p99 wait of the short ones", "s", percentile(waits, 99))
