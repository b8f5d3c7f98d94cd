"""What docs/guarantees.md promises is proved by tests that exist, and its example does what it says."""

from __future__ import annotations

import ast
import importlib.util
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from taskyard.testing import run_handler

from .markdown import PAGES, ROOT, blocks

GUARANTEES = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _tests(path: Path) -> set[str]:
    """The tests of a file."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for path, name in NAMED.findall(page.read_text()):
        assert (ROOT / path).is_file(), path
        assert name in _tests(ROOT / path), f"{path} has no {name}"


def test_every_promise_names_a_test() -> None:
    promise = GUARANTEES.read_text().split("## The promise", 1)[1].split("## What is not promised", 1)[0]
    for part in re.split(r"^### ", promise, flags=re.MULTILINE)[1:]:
        sentences = re.split(r"\n\n(?=\*\*)", part)
        assert all(NAMED.search(sentence) for sentence in sentences[1:]), part.splitlines()[0]


def test_the_example_books_once_and_a_late_run_undoes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "billing.py"
    source.write_text(blocks(GUARANTEES, "python")[0])
    spec = importlib.util.spec_from_file_location("billing", source)
    assert spec
    assert spec.loader
    billing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(billing)

    task, other = UUID(int=1), UUID(int=2)
    payload = {"database": str(tmp_path / "db"), "account": "a", "cents": 500}
    assert run_handler(billing.charge, payload, task_id=task, fence=1).result == 500
    assert run_handler(billing.charge, payload, task_id=other).result == 1000
    assert run_handler(billing.charge, payload, task_id=task, fence=2).result == 1000, "the second run of a task adds nothing"
    assert run_handler(billing.charge, payload, task_id=task, fence=1).result == 1000, "the first one wakes late"
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        assert db.execute("SELECT fence, text FROM reports WHERE task_id = ?", (str(task),)).fetchone() == (2, "run 2: 1000")
