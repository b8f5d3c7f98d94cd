"""Plots of a report: ``python -m benchmarks.plots REPORT.json`` writes a PNG and an SVG for each measure beside it.

Runs in the environment of the peers, which has matplotlib: the product needs none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, THEIRS = "#1f5fbf", "#9aa5b1"


def draw(report: Path) -> list[Path]:
    """Draw every measure of a report; the PNGs' paths."""
    measures: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for figure in json.loads(report.read_text())["figures"]:
        cases = measures.setdefault(figure["measure"], {})
        cases.setdefault((figure["case"], figure["figure"]), []).append(figure)
    return [_draw_measure(report, measure, cases) for measure, cases in measures.items()]


def _draw_measure(report: Path, measure: str, cases: dict[tuple[str, str], list[dict[str, Any]]]) -> Path:
    """A panel of bars for each case and figure: a median each, and from the least to the greatest round."""
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    tallest = max(len(figures) for figures in cases.values())
    canvas, axes = plt.subplots(rows, columns, figsize=(6 * columns, rows * (1.1 + 0.3 * tallest)), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, ((case, name), figures) in zip(flat, cases.items(), strict=False):
        _bars(axis, f"{case}: {name}", figures)
    for axis in flat[len(cases) :]:
        axis.set_visible(False)
    path = report.with_name(f"{report.stem}-{measure}.png")
    for kind in (".png", ".svg"):
        canvas.savefig(path.with_suffix(kind), dpi=90)
    plt.close(canvas)
    return path


def _bars(axis: Any, title: str, figures: list[dict[str, Any]]) -> None:
    medians = [figure["median"] for figure in figures]
    # A median of all samples may lie outside the medians of the rounds.
    below = [max(0.0, median - figure["min"]) for median, figure in zip(medians, figures, strict=True)]
    above = [max(0.0, figure["max"] - median) for median, figure in zip(medians, figures, strict=True)]
    colours = [OURS if figure["side"].startswith("Taskyard") else THEIRS for figure in figures]
    bars = axis.barh([figure["side"] for figure in figures], medians, xerr=[below, above], color=colours, ecolor="#444", capsize=2)
    axis.bar_label(bars, [f"{median:,.4g}" for median in medians], padding=4, fontsize=7)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.margins(x=0.2)
    axis.set_xlabel(figures[0]["unit"], fontsize=8)


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1])):
        print(drawn.name)
