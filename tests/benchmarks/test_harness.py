"""The benchmarks' harness works: a run of the smallest size, without peers, on the embedded parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_small_run_measures_latency_and_writes_its_report(tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--samples", "2", "--seconds", "0.2"]
    command = [sys.executable, "-m", "benchmarks", "--only", "latency", "--quick", "--no-peers", "--pairs", "embedded", *sizes, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=90)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("*.json")
    assert "latency" in json.dumps(json.loads(report.read_text()))
    assert list(tmp_path.glob("*.md"))
