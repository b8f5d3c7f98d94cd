"""`make chaos`: see --help, and docs/guarantees.md."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.ground import has_rabbitmq

from . import plan as plans
from .hunts import HUNTS, mutated
from .report import console, print_table
from .run import Broken, Run, ground_of

TASKS = 12_000
#: Tasks without faults, at least.
CALM = 1_000


def main() -> int:
    """Run what was asked for; 1 if anything is not as promised."""
    asked = _arguments()
    seed = random.randrange(10_000) if asked.seed is None else asked.seed
    kinds = {"servers": ["rabbitmq"], "embedded": ["embedded"], "": ["rabbitmq", "embedded"] if has_rabbitmq() else ["embedded"]}[asked.pair]
    if asked.mutate:
        return _one(mutated(asked.mutate, seed, kinds[0], control=asked.control), keep=asked.keep)
    wanted = [plans.calm(max(CALM, asked.tasks // 20), seed, kind) for kind in kinds] + [
        plans.chaos(asked.tasks, seed, kind) for kind in kinds if not asked.calm
    ]
    return max(_one(plan, keep=asked.keep) for plan in wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description="Tasks, faults, and a count of everything.")
    parser.add_argument("--tasks", type=int, default=TASKS, help=f"how many to submit ({TASKS} for each pair)")
    parser.add_argument("--seed", type=int, help="the same seed makes the same tasks and faults; any")
    parser.add_argument("--mutate", choices=list(HUNTS), help="take this guard out: the run must go red")
    parser.add_argument("--control", action="store_true", help="with --mutate: the same run with the guard left in")
    parser.add_argument("--pair", choices=("servers", "embedded"), default="", help="one pair alone")
    parser.add_argument("--calm", action="store_true", help="only the part without faults: eight clients in a closed loop, and nothing may be swept")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and records")
    return parser.parse_args([argument for argument in sys.argv[1:] if argument])


def _one(plan: plans.Plan, *, keep: bool) -> int:
    # Short, for the sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="ty-", dir="/tmp"))
    # PostgreSQL and RabbitMQ run as nobody where we are root.
    folder.chmod(0o755)
    console.rule(f"{plan.tasks:,} tasks, seed {plan.seed}, {plan.kind}" + (f", without {plan.mutate}" if plan.mutate else ""))
    try:
        with ground_of(plan.kind, folder) as ground:
            run = Run(plan, ground, folder)
            counts = run.go()
    except Broken as error:
        console.print(f"[red]The run went wrong: {error}[/red]\nLogs are in {folder}")
        return 2
    print_table(plan, counts, run.progress.seconds())
    wrong = any(count.wrong for count in counts)
    if wrong or keep:
        console.print(f"Logs and records are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
