"""Built-ins use the public door: a plugin imports `taskyard` and what it exports, never what lies behind."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskyard

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for pattern in ("plugins/*/pyproject.toml", "examples/*/pyproject.toml") for path in ROOT.glob(pattern))
ROOMS = ("taskyard_api", "taskyard_worker", "taskyard_migrations")


def _imports(folder: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import in a distribution; name is empty for a plain import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_imports_only_what_taskyard_exports(folder: Path) -> None:
    for module, name in _imports(folder):
        assert module.partition(".")[0] not in ROOMS
        assert not module.startswith("taskyard."), f"{folder.name} imports {module}"
        if module == "taskyard" and name:
            assert name in taskyard.__all__, f"{folder.name} imports taskyard.{name}, which is not public"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_is_a_distribution_of_its_own(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"taskyard-{folder.name}"
    assert list(project["entry-points"]["taskyard.plugins"]) == [folder.name]
    assert any(requirement.startswith("taskyard>=") for requirement in project["dependencies"])
    assert (folder / project["readme"]).read_text().startswith(f"# taskyard-{folder.name}\n")


def test_what_is_exported_exists_and_is_sorted() -> None:
    assert list(taskyard.__all__) == sorted(taskyard.__all__, key=lambda name: (not name[0].isupper(), name))
    assert all(hasattr(taskyard, name) for name in taskyard.__all__)
