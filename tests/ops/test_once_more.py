"""`.ci/once_more.py`, by which CI runs the tests: what it forgives, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.conftest import pytest_sessionfinish
"""
STEADY = "def test_steady(): pass\n"
#: It passes when it is run for the second time.
UNSTEADY = """
import pathlib, pytest
@pytest.mark.parametrize("n", range({count}))
def test_unsteady(n):
    seen = pathlib.Path(f"seen{{n}}")
    assert seen.exists() or seen.touch()
"""
BROKEN = "def test_broken(): assert False\n"
SETUP = """
import pathlib, pytest
@pytest.fixture
def made():
    seen = pathlib.Path("made")
    assert seen.exists() or seen.touch()
def test_made(made): pass
"""
ONE = UNSTEADY.format(count=1)
STOP = "def test_stops_it_all(): pytest.exit('enough', returncode={status})\n"
KILL = "import os\ndef test_kills_it_all(): os._exit(1)\n"


def _run(folder: Path, suite: str, *options: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_suite.py").write_text(suite)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p xdist\n")
    command = [sys.executable, str(ROOT / ".ci/once_more.py"), sys.executable, "-m", "pytest", *options]
    # Not the options of the run that this is a test of, and no plugin but the one that .ci/once_more.py uses.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_what_passes_passes(tmp_path: Path) -> None:
    status, said = _run(tmp_path, STEADY)
    assert (status, "once more" in said.lower()) == (0, False)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "beside others"])
@pytest.mark.parametrize("suite", [UNSTEADY.format(count=3), SETUP], ids=["call", "setup"])
def test_up_to_three_that_pass_the_second_time_are_forgiven_and_named(tmp_path: Path, suite: str, options: tuple[str, ...]) -> None:
    status, said = _run(tmp_path, STEADY + suite, *options)
    names = [f"test_suite.py::test_unsteady[{n}]" for n in range(3)] if "unsteady" in suite else ["test_suite.py::test_made"]
    assert status == 0, said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("unsteady: ")] == names


@pytest.mark.parametrize(
    ("suite", "reason"),
    [
        (STEADY + BROKEN, "Failed at the second try"),
        (ONE + BROKEN, "Failed at the second try"),
        (UNSTEADY.format(count=4), "4 tests failed"),
        ("import nothing_like_it\n" + STEADY, "did not come to their end"),
        (ONE + STOP.format(status=2), "did not come to their end"),
        (ONE + STOP.format(status=3), "did not come to their end"),
        (ONE + KILL, "did not come to their end"),
        ("", "did not come to their end"),
    ],
    ids=["broken", "one of two", "too many", "not read", "interrupted", "internal error", "killed", "no tests"],
)
def test_all_else_fails(tmp_path: Path, suite: str, reason: str) -> None:
    status, said = _run(tmp_path, suite)
    assert (status, reason in said, "unsteady: " in said) == (1, True, False), said


def test_failures_of_an_earlier_run_are_not_run_again(tmp_path: Path) -> None:
    assert _run(tmp_path, STEADY + BROKEN)[0] == 1
    assert _run(tmp_path, STEADY + ONE)[0] == 0
