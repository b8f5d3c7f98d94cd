"""The benchmarks' harness works: each measure, at the smallest size, without peers, on the embedded parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measures import MEASURES
from benchmarks.run import QUICK, Run
from benchmarks.taskyard_side import COLOURS, SWEPT

ROOT = Path(__file__).parents[2]
SMALL = ["--rounds", "1", "--samples", "2", "--seconds", "0.2", "--tasks", "20", "--sleepers", "20", "--mixed", "100", "--slow", "0.05"]
SMALL += ["--rows", "3", "--waiting", "200", "--tries", "1", "--idle", "0.1", "--settle", "0.1"]
#: What a report of each measure must have a figure of: words of a case, a side or a figure's name.
TELLS = {
    "submit": ("32 connections", "128 connections", "FastAPI that stores nothing", "batches of 1,000"),
    "work": ("sync no-op", "async no-op"),
    "end-to-end": ("closed loop", "steady", "Prefer: wait", "polled", "tasks swept so far"),
    "latency": ("sync handler", "async handler", "accepted to started"),
    "concurrency": ("20 tasks of sleep(1)",),
    "mixed": ("bundle=1", "p99 wait of the short ones"),
    "growth": ("submit", "dispatch and claim", "list: deep cursor", "list: tag", "one task", "old transaction open", "that wait"),
    "cost": ("commits a task", "WAL a task", "messages a task", "most memory (PSS)", "of one core"),
    "up": ("first start", "later start", "memory (PSS)"),
}


def test_every_measure_is_tried_here() -> None:
    assert set(TELLS) == set(MEASURES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("measure", TELLS)
def test_a_small_run_measures_what_it_names_and_writes_its_report(measure: str, tmp_path: Path) -> None:
    report = run(tmp_path, measure)
    told = [f"{figure['case']} | {figure['side']} | {figure['figure']}" for figure in report["figures"]]
    assert not [why for why in report["left_out"] if "ended early" in why]
    assert [word for word in TELLS[measure] if not any(word in line for line in told)] == []
    assert all(figure["median"] >= 0 and figure["rounds"] for figure in report["figures"])
    (markdown,) = tmp_path.glob("*.md")
    assert all(figure["side"] in markdown.read_text() for figure in report["figures"])


def run(folder: Path, measure: str) -> dict[str, Any]:
    """The JSON report of a small run."""
    command = [sys.executable, "-m", "benchmarks", "--only", measure, "--quick", "--no-peers", "--pairs", "embedded", *SMALL, "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    (report,) = folder.glob("*.json")
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def test_a_sweep_is_found_in_the_dispatchers_log_and_fails_the_run() -> None:
    said = "2026-01-01T00:00:00Z [\x1b[33mwarning\x1b[0m] \x1b[1mtasks.swept\x1b[0m \x1b[36mcount\x1b[0m=\x1b[35m3\x1b[0m lane=sync task_ids=['x']\n"
    assert [int(count) for count in SWEPT.findall(COLOURS.sub("", said * 2))] == [3, 3]
    run_ = Run(QUICK, [], False, Path(), lambda _: None)
    run_.breaks("three tasks were swept")
    assert (run_.broken, run_.left_out) == (["three tasks were swept"],) * 2
