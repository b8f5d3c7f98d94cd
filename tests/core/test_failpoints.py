"""Failpoints: each is placed, each fires when it is told to, and a wrong name is no silent failure."""

from __future__ import annotations

import ast
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskyard import failpoints
from taskyard.errors import ConfigurationError
from taskyard.failpoints import EXIT_STATUS, POINTS, VARIABLE, Armed, arm, hit, parse
from tests.docs.markdown import ROOT, names, rows
from tests.stack import until

ROOMS = [ROOT / "core" / "taskyard", ROOT / "api" / "taskyard_api", ROOT / "worker" / "taskyard_worker"]
LOOP = """
from taskyard import failpoints, logs
from taskyard.settings import LogSettings
logs.configure(LogSettings())
failpoints.arm()
for number in range(1, 6):
    print(number, flush=True)
    failpoints.hit("claim.committed")
"""


def _placed() -> set[str]:
    """The names that the code passes."""
    found = set()
    for path in (path for room in ROOMS for path in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}: a failpoint's name must be a literal"
                found.add(str(name.value))
    return found


def test_every_failpoint_is_placed_in_the_code_and_no_other_is() -> None:
    assert _placed() == set(POINTS)


def test_every_failpoint_is_in_the_documentation() -> None:
    listed = {names(row[0])[0]: row[1] for row in rows(ROOT / "docs" / "failpoints.md", "## The points")}
    assert listed == dict(POINTS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("claim.comitted=exit", "there is no failpoint 'claim.comitted'. Did you mean 'claim.committed'?"),
        ("claim.committed", "expected name=action, such as dispatch.committed=exit@3, not 'claim.committed'"),
        ("claim.committed=explode", "there is no action 'explode'; there are exit and stop"),
        ("claim.committed=exit@0", "'0' is no pass"),
        ("claim.committed=exit@soon", "'soon' is no pass"),
        ("claim.committed=exit:1.5", "'1.5' is no probability"),
        ("claim.committed=exit:", "'' is no probability"),
        ("seed=x", "'x' is no seed"),
    ],
)
def test_what_is_garbled_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(text)
    assert str(refused.value) == f"{VARIABLE}: {sentence}"


def test_several_are_armed_at_once() -> None:
    armed, seed = parse("claim.committed=exit@3, beat.committed=stop:0.25 ,ack.sent=exit,seed=7")
    assert armed == {"claim.committed": Armed("exit", at=3), "beat.committed": Armed("stop", probability=0.25), "ack.sent": Armed("exit", at=1)}
    assert seed == 7


def test_the_same_seed_fires_at_the_same_passes() -> None:
    def fired(seed: int) -> list[bool]:
        armed, chance = Armed("exit", probability=0.3), random.Random(seed)
        return [armed.due(chance) for _ in range(100)]

    assert fired(7) == fired(7) != fired(8)
    assert 10 < sum(fired(7)) < 50


def _loop(tmp_path: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LOOP], env={VARIABLE: what}, stdout=subprocess.PIPE, text=True, cwd=tmp_path)


def test_exit_ends_the_process_at_the_pass_that_it_names(tmp_path: Path) -> None:
    process = _loop(tmp_path, "claim.committed=exit@3")
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said.split()) == (EXIT_STATUS, ["1", "2", "3"])


def test_stop_halts_the_process_until_it_is_continued(tmp_path: Path) -> None:
    process = _loop(tmp_path, "claim.committed=stop@2")
    status = Path(f"/proc/{process.pid}/stat")
    until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", 30, "the stop")
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said.split()) == (0, ["1", "2", "3", "4", "5"])


def test_one_that_is_not_armed_does_nothing(tmp_path: Path) -> None:
    process = _loop(tmp_path, "ack.sent=exit@1")
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said.split()) == (0, ["1", "2", "3", "4", "5"])
    arm({})
    hit("claim.committed")
    assert failpoints._armed == {}
