"""The image: built from what the repository has, small, and not root."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def _instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of each line, continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def _final_stage() -> list[tuple[str, str]]:
    instructions = _instructions()
    start = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def _copied() -> list[str]:
    """What is copied from the repository."""
    words = [rest.split() for name, rest in _instructions() if name == "COPY" and "--from" not in rest]
    return [word for line in words for word in line[:-1] if not word.startswith("--")]


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or ROOT / ".venv" / "bin" / "hadolint"
    if not Path(hadolint).exists():
        pytest.skip("hadolint has no wheel for this machine")
    linted = subprocess.run([hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_final_stage_has_no_build_tools_and_no_source() -> None:
    stages = [rest for name, rest in _instructions() if name == "FROM"]
    assert stages == ["python:3.11-slim AS build", "python:3.11-slim"]
    assert not any("pip" in rest for name, rest in _final_stage() if name == "RUN")


def test_it_does_not_run_as_root() -> None:
    users = [rest for name, rest in _final_stage() if name == "USER"]
    assert [user.split(":")[0].isdecimal() and int(user.split(":")[0]) > 0 for user in users] == [True]


def test_what_it_copies_exists_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in _copied():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored


def test_its_command_gets_signals_itself() -> None:
    (command,) = [rest for name, rest in _final_stage() if name == "CMD"]
    assert json.loads(command) == ["taskyard", "serve"]
    assert ("STOPSIGNAL", "SIGTERM") in _final_stage()


def test_secrets_and_history_stay_out_of_the_build() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert not {"!.env", "!.git", "!.taskyard"} & set(ignored)
