"""``python -m benchmarks``: measure, show the tables, write the report."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.measures import MEASURES
from benchmarks.parts import Parts, answers, embedded
from benchmarks.peer_side import missing
from benchmarks.processes import ROOT
from benchmarks.run import QUICK, Run, Size

PAIRS = ("servers", "embedded")


def main(
    only: Annotated[str, typer.Option(help=f"Measures, comma-separated: {', '.join(MEASURES)}.")] = ",".join(MEASURES),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run, of about two minutes.")] = False,
    peers: Annotated[bool, typer.Option(help="Measure the peers too.")] = True,
    pairs: Annotated[str, typer.Option(help="Parts to measure on: servers (PostgreSQL and RabbitMQ), embedded.")] = ",".join(PAIRS),
    postgres: Annotated[str, typer.Option(help="PostgreSQL whose user may create databases.")] = "postgresql://postgres@127.0.0.1:5432/postgres",
    rabbitmq: Annotated[str, typer.Option(help="RabbitMQ.")] = "amqp://guest:guest@127.0.0.1:5672//",
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each measure.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.05, help="Seconds of one load or backlog.")] = None,
    tasks: Annotated[int | None, typer.Option(min=20, help="Tasks in a backlog.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Single tasks in one round of latency.")] = None,
    sleepers: Annotated[int | None, typer.Option(min=1, help="Tasks that sleep at once.")] = None,
    mixed: Annotated[int | None, typer.Option(min=100, help="Tasks of the mixed queue.")] = None,
    slow: Annotated[float | None, typer.Option(min=0.01, help="Seconds of its slow ones.")] = None,
    rows: Annotated[int | None, typer.Option(min=2, max=8, help="The longest history is 10 to the power of this; 7 takes about 15 GB of disk.")] = None,
    waiting: Annotated[int | None, typer.Option(min=100, help="Tasks that wait while growth is measured.")] = None,
    tries: Annotated[int | None, typer.Option(min=1, help="Tries of each statement in a round of growth.")] = None,
    idle: Annotated[float | None, typer.Option(min=0.1, help="Seconds to watch idle processes.")] = None,
    settle: Annotated[float | None, typer.Option(min=0.0, help="Seconds until PostgreSQL has told its counts.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = ROOT / "benchmarks" / "results",
) -> None:
    """Measure the speed of the whole, beside peers, in one run."""
    wanted, chosen = _words(only, tuple(MEASURES), "--only"), _words(pairs, PAIRS, "--pairs")
    given: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "tasks": tasks, "samples": samples, "sleepers": sleepers, "mixed": mixed, "slow": slow}
    given |= {"rows": rows, "waiting": waiting, "tries": tries, "idle": idle, "settle": settle}
    size = dataclasses.replace(QUICK if quick else Size(), **{name: value for name, value in given.items() if value is not None})
    console = Console(stderr=True)
    about, began = report.machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ty-bench-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        status = stack.enter_context(console.status("starting"))
        say = status.update if console.is_terminal else console.print
        run = Run(size, [], False, Path(folder), lambda text: say(f"[{time.monotonic() - began:4.0f} s] {text}".replace("[", "\\[", 1)))
        run.parts = _parts(run, chosen, postgres, rabbitmq, stack)
        why = missing() if peers else "Peers are left out, as asked."
        run.peers = why is None
        if why:
            run.leave_out(why)
        for name in wanted:
            try:
                MEASURES[name](run)
            except Exception as error:
                # What was measured until then, and what comes after it, is worth its report.
                run.leave_out(f"{name} ended early: {error!r}")
            # A long run that is ended from outside leaves what it has measured.
            path = report.write(run, output, dict(about), time.monotonic() - began)
        report.draw(run, path, about, time.monotonic() - began)
    report.show(run, Console())
    console.print(f"The report is in {path} and, for programs, beside it as .json.", soft_wrap=True)
    for sentence in run.broken:
        console.print(sentence, style="red", markup=False)
    if run.broken:
        raise SystemExit(1)


def _parts(run: Run, chosen: list[str], postgres: str, rabbitmq: str, stack: ExitStack) -> list[Parts]:
    """The pairs that answer, the first of which is the peers' too."""
    found = []
    if "servers" in chosen:
        away = [name for name, url, port in (("PostgreSQL", postgres, 5432), ("RabbitMQ", rabbitmq, 5672)) if not answers(url, port)]
        if away:
            run.leave_out(f"{' and '.join(away)} did not answer: servers are left out.")
        else:
            found.append(Parts("RabbitMQ", postgres, rabbitmq))
    if "embedded" in chosen or not found:
        found.append(stack.enter_context(embedded(run.folder)))
    return found


def _words(text: str, known: tuple[str, ...], option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if word not in known]:
        print(f"{option}: {', '.join(wrong)} not known; expected some of {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return [word for word in known if word in words]


if __name__ == "__main__":
    typer.run(main)
