"""A file of the current folder never passes for a module: not for a command, nor for the processes that it starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from taskyard.pythons import python
from taskyard.up.plan import taskyard_command
from tests.worker.one_child import zygote

#: Names that Taskyard or what it needs imports, from the standard library and from elsewhere.
NAMES = ("email", "queue", "random", "calendar", "celery", "redis", "taskyard", "pydantic", "statistics")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose files raise when they are imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported from the current folder')")
    return tmp_path


SCRIPT = shutil.which("taskyard", path=str(Path(sys.executable).parent)) or "taskyard"


@pytest.mark.parametrize("command", [taskyard_command("--help"), [SCRIPT, "plugins", "list"]], ids=" ".join)
def test_a_command_imports_nothing_from_the_current_folder(folder: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_taskyard_imports_nothing_else_from_it(folder: Path) -> None:
    # Python itself looks for the module that -m names.
    (folder / "taskyard.py").unlink()
    done = subprocess.run([sys.executable, "-m", "taskyard", "--help"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_celery_finds_the_app_without_the_current_folder(folder: Path) -> None:
    """As `celery -A taskyard_worker` does it: with the folder in front of the path."""
    code = """
import os, sys
from celery.utils.imports import import_from_cwd
try:
    import_from_cwd("taskyard_worker.celery")
except Exception as error:
    print(type(error).__name__, sys.path.count(os.getcwd()))
"""
    done = subprocess.run(python("-c", code), cwd=folder, capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout == "ConfigurationError 0\n", done.stderr


def test_children_of_a_worker_and_the_processes_that_they_start_import_nothing_from_it(folder: Path) -> None:
    with zygote(folder) as bed:
        child = bed.fork()
        assert child.do("spawned import", "statistics").result == "standard library"


def test_what_pythonpath_names_is_still_found(folder: Path) -> None:
    (folder / "mine.py").write_text("print('mine')")
    done = subprocess.run(python("-c", "import mine"), cwd="/", capture_output=True, text=True, env={"PYTHONPATH": str(folder)}, timeout=60)
    assert done.stdout == "mine\n", done.stderr
