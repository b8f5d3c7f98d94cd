"""The report: a table for people (Markdown, and on the terminal) and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, percentile
from benchmarks.peer_side import ENVIRONMENT
from benchmarks.processes import ROOT
from benchmarks.run import Run

HEADS = ("case", "side", "figure", "median", "rounds, least to most", "p99")
#: What a row is compared with: of most measures, how many times as much Taskyard has; of growth, what the size makes of a statement.
RATIO = {"growth": "÷ the first"}


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load at the start": _load(),
        "system": f"{platform.system()} {platform.machine()}",
    } | {
        "python": platform.python_version(),
        "taskyard": version("taskyard"),
    }


def write(run: Run, folder: Path, about: dict[str, Any], took: float) -> Path:
    """Write both reports as far as they are; the Markdown one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{about['when'].replace(':', '').replace('+0000', 'Z')}.md"
    about |= {"load at the end": _load()}
    told = {"machine": about, "took": took, "left_out": run.left_out, "notes": run.notes}
    figures = [figure.told() | {"ratio": run.figures.ratio(figure)} for figure in run.figures]
    path.with_suffix(".json").write_text(json.dumps(told | {"figures": figures}, indent=1) + "\n")
    path.write_text(markdown(run, about, took))
    return path


def draw(run: Run, path: Path, about: dict[str, Any], took: float) -> None:
    """Draw the plots of a report that is written, and show them in it."""
    plots = _plots(run, path.with_suffix(".json"))
    path.write_text(markdown(run, about | {"load at the end": _load()}, took, plots))


def _plots(run: Run, report: Path) -> dict[str, str]:
    """The file names of the plots, by measure."""
    drawer = ENVIRONMENT / "python"
    if not drawer.exists():
        run.leave_out(f"Plots are left out: there is no {ENVIRONMENT.parent.name}; `make bench` installs it.")
        return {}
    done = subprocess.run([str(drawer), "-m", "benchmarks.plots", str(report)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        run.leave_out(f"Plots are left out: {done.stderr.strip().splitlines()[-1]}")
        return {}
    return {name.removeprefix(f"{report.stem}-").removesuffix(".png"): name for name in done.stdout.split()}


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def markdown(run: Run, about: dict[str, Any], took: float, plots: Mapping[str, str] = MappingProxyType({})) -> str:
    """The report as Markdown."""
    lines = ["# Benchmark", "", f"{', '.join(f'{key} {value}' for key, value in about.items())}; took {took:.0f} s.", ""]
    lines += [f"- {why}" for why in [*run.left_out, *run.notes]]
    for measure, figures in _by_measure(run).items():
        heads = _heads(measure)
        lines += ["", f"## {measure}", "", _row(heads), _row(["---"] * len(heads))]
        lines += [_row(_cells(run, figure)) for figure in figures]
        if measure in plots:
            lines += ["", f"![{measure}]({plots[measure]})"]
    return "\n".join(lines) + "\n"


def _heads(measure: str) -> list[str]:
    return [*HEADS, RATIO.get(measure, "Taskyard ÷ it")]


def show(run: Run, console: Console) -> None:
    """The tables on a terminal."""
    for measure, figures in _by_measure(run).items():
        table = Table(*_heads(measure), title=measure, title_justify="left")
        for figure in figures:
            table.add_row(*_cells(run, figure))
        console.print(table)
    for why in [*run.left_out, *run.notes]:
        console.print(f"- {why}")


def _by_measure(run: Run) -> dict[str, list[Figure]]:
    found: dict[str, list[Figure]] = {}
    for figure in run.figures:
        found.setdefault(figure.measure, []).append(figure)
    return {measure: sorted(figures, key=lambda f: [g.case for g in figures].index(f.case)) for measure, figures in found.items()}


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(run: Run, figure: Figure) -> list[str]:
    low, high = figure.spread
    ratio = run.figures.ratio(figure)
    p99 = _number(percentile(figure.samples, 99)) if figure.samples else ""
    spread = f"{_number(low)} to {_number(high)}" if len(figure.rounds) > 1 else ""
    unit = "" if figure.unit in ("", "1/s") else f" {figure.unit}"
    return [figure.case, figure.side, figure.name, _number(figure.median) + unit, spread, p99, "" if ratio is None else f"{ratio:.2f}"]


def _number(value: float) -> str:
    return (
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.4f}"
    )
