"""The page docs/first-plugin.md as a newcomer reads it: every command is run and every file is written, in its order."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskyard.testing import running_taskyard
from tests.docs.markdown import ROOT, blocks
from tests.newcomer import Newcomer

PAGE = ROOT / "docs" / "first-plugin.md"
GUIDE = ROOT / "docs" / "plugin-authors.md"
_STEP = re.compile(r"(?:`(?P<path>[\w/.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@contextmanager
def _up(newcomer: Newcomer) -> Iterator[str]:
    """What the page has the newcomer start in a second terminal, on a port that is free."""
    with running_taskyard(environment=newcomer.environment, python=str(newcomer.bin / "python")) as running:
        yield running.url


@pytest.mark.timeout(600)
def test_the_page_leads_from_nothing_to_a_distribution(tmp_path: Path) -> None:
    newcomer = Newcomer(tmp_path)
    steps = list(_STEP.finditer(PAGE.read_text()))
    starts = [number for number, step in enumerate(steps) if step["text"].startswith("taskyard up")]
    assert len(starts) == 1
    said = [_do(newcomer, step) for step in steps[: starts[0]]]
    assert "5 passed" in "".join(said)
    assert "words: fine" in "".join(said)
    with _up(newcomer) as url:
        by_command, by_rest = (_do(newcomer, step, TASKYARD_URL=url) for step in steps[starts[0] + 1 : starts[0] + 3])
    assert "Hello, world!" in by_command
    task = json.loads(by_rest)
    assert (task["status"], task["result"]) == ("succeeded", {"text": "Hello, world!"})
    # The guide's example of a whole Taskyard is about this plugin too.
    (newcomer.folder / "words" / "tests" / "test_guide.py").write_text(blocks(GUIDE, "python")[-1])
    said = [_do(newcomer, step) for step in steps[starts[0] + 3 :]]
    assert "6 passed" in "".join(said)
    _check_built(newcomer.folder / "words" / "dist")


def _do(newcomer: Newcomer, step: re.Match[str], **environment: str) -> str:
    if step["language"] == "sh":
        return newcomer.shell(step["text"], **environment)
    assert (newcomer.folder / step["path"]).is_file(), "the page changes files that the command has made"
    (newcomer.folder / step["path"]).write_text(step["text"])
    return ""


def _check_built(folder: Path) -> None:
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert {"taskyard_words/__init__.py", "taskyard_words/py.typed"} <= set(archive.namelist())
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
        entry_points = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    assert "Requires-Dist: taskyard<1,>=0.1" in metadata
    assert "Description-Content-Type: text/markdown" in metadata
    assert "words = taskyard_words" in entry_points
    with tarfile.open(source) as archive:
        assert any(name.endswith("tests/test_taskyard_words.py") for name in archive.getnames())
