"""The report: a table for people (Markdown, and on the terminal) and JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, percentile
from benchmarks.run import Run

HEADS = ("case", "side", "figure", "median", "rounds, least to most", "p99", "Taskyard ÷ it")


def machine() -> dict[str, Any]:
    """What the run ran on."""
    load = [round(value, 2) for value in os.getloadavg()]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load": load,
        "system": f"{platform.system()} {platform.machine()}",
    } | {
        "python": platform.python_version(),
        "taskyard": version("taskyard"),
    }


def write(run: Run, folder: Path, about: dict[str, Any], took: float) -> Path:
    """Write both reports; the Markdown one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = about["when"].replace(":", "").replace("+0000", "Z")
    told = {"machine": about, "took": took, "left_out": run.left_out}
    figures = [figure.told() | {"ratio": run.figures.ratio(figure)} for figure in run.figures]
    (folder / f"{name}.json").write_text(json.dumps(told | {"figures": figures}, indent=1) + "\n")
    path = folder / f"{name}.md"
    path.write_text(markdown(run, about, took))
    return path


def markdown(run: Run, about: dict[str, Any], took: float) -> str:
    """The report as Markdown."""
    lines = ["# Benchmark", "", f"{', '.join(f'{key} {value}' for key, value in about.items())}; took {took:.0f} s.", ""]
    lines += [f"- {why}" for why in run.left_out]
    for measure, figures in _by_measure(run).items():
        lines += ["", f"## {measure}", "", _row(HEADS), _row(["---"] * len(HEADS))]
        lines += [_row(_cells(run, figure)) for figure in figures]
    return "\n".join(lines) + "\n"


def show(run: Run, console: Console) -> None:
    """The tables on a terminal."""
    for measure, figures in _by_measure(run).items():
        table = Table(*HEADS, title=measure, title_justify="left")
        for figure in figures:
            table.add_row(*_cells(run, figure))
        console.print(table)
    for why in run.left_out:
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
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
