"""Run the tests by a command; where at most three have failed, run just these once more, alone.

The tests of whole systems wait for real processes, and a machine that stands still for seconds at the wrong moment can make one of
them fail. What passes only the second time is named: it is a test to mend. All else fails at once: more than three, one that
fails again, a run that did not come to its end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MOST = 3
CACHE = Path(".pytest_cache")
#: What tests/conftest.py keeps there, and what pytest does.
STATUS, FAILED = CACHE / "v/taskyard/status", CACHE / "v/cache/lastfailed"
SOME_FAILED = 1


def main(command: list[str]) -> int:
    """Run ``command``, which runs pytest here, and what failed in it."""
    # It has the failures of earlier runs, too.
    shutil.rmtree(CACHE, ignore_errors=True)
    if subprocess.run(command).returncode == 0:
        return 0
    if (status := _read(STATUS)) != SOME_FAILED:
        return _say(f"The tests did not come to their end (pytest's exit status: {status}), so nothing is run once more.")
    failed = sorted(_read(FAILED) or {})
    if not 0 < len(failed) <= MOST:
        return _say(f"{len(failed)} tests failed. At most {MOST} would be run once more.")
    _say(f"Once more, alone: {', '.join(failed)}")
    if subprocess.run([sys.executable, "-m", "pytest", "-n", "0", *failed]).returncode != 0:
        return _say("Failed at the second try, too.")
    for test in failed:
        _say(f"unsteady: {test} failed among the others and passed alone")
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _say(text: str) -> int:
    print(text, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
