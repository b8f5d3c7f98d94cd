"""`taskyard plugins new`: what it writes is installed, passes its own tests and every check, and works at the next start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskyard.scaffold import CantMake, make_plugin
from tests.newcomer import Newcomer

#: Most of what mypy looks at is Taskyard, and the same the next time.
CACHE = Path(__file__).parents[2] / ".mypy_cache" / "newcomer"


@pytest.mark.timeout(400)
def test_new_plugins_of_both_kinds_pass_their_own_tests_and_every_check(tmp_path: Path) -> None:
    newcomer = Newcomer(tmp_path)
    told = newcomer.shell("taskyard plugins new fresh-words && taskyard plugins new fresh-tell --notifier")
    commands = [line.strip() for line in told.splitlines() if line.startswith("  ")]
    assert [command for command in commands if command.startswith("python -m pytest")] == ["python -m pytest fresh-words", "python -m pytest fresh-tell"]
    newcomer.shell("\n".join(command for command in commands if " pip " in command))
    # Both in one session: each would start a whole Taskyard of its own.
    assert "13 passed in" in newcomer.shell("python -m pytest fresh-words fresh-tell")
    checked = newcomer.shell("\n".join(command for command in commands if "plugins check" in command))
    assert checked.splitlines() == ["fresh-words: fine", "fresh-tell: fine"]
    for name in ("fresh-words", "fresh-tell"):
        newcomer.shell(f"cd {name} && ruff check --no-cache . && ruff format --no-cache --check .")
    sources = "fresh-words/src fresh-words/tests fresh-tell/src fresh-tell/tests"
    newcomer.shell(f"python -m mypy --cache-dir={CACHE} --config-file=fresh-words/pyproject.toml {sources}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("My Words", "Try 'my-words'"),
        ("words-", "Try 'words'"),
        ("9lives", "Try 'lives'"),
        ("a--b", "Try 'a-b'"),
        ("../up", "Try 'up'"),
        ("", "is no plugin's name"),
        ("x" * 41, "at most 40 characters"),
        ("Wörter", "is no plugin's name"),
        ("disabled", "plugins.disabled is a setting of Taskyard's own"),
        ("taskyard-only", "plugins.only is a setting of Taskyard's own"),
        ("demo", "A plugin 'demo' is installed already, by taskyard-demo"),
        ("taskyard_demo", "A plugin 'demo' is installed already"),
        ("api", "There is a Python module 'taskyard_api' already"),
    ],
)
def test_a_name_that_is_no_good_or_taken_is_refused_with_a_sentence(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(CantMake, match=re.escape(told)):
        make_plugin(name, "handler", tmp_path / "made")
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CantMake, match="is there already"):
        make_plugin("mine", "handler", tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CantMake, match="can't be written"):
        make_plugin("mine", "handler", tmp_path / "file")


def test_the_distribution_the_module_and_the_plugin_are_named_after_it(tmp_path: Path) -> None:
    names = make_plugin("taskyard-big_words", "notifier", tmp_path / "below")
    assert (names.plugin, names.distribution, names.module) == ("big_words", "taskyard-big-words", "taskyard_big_words")
    assert names.folder == tmp_path / "below" / "taskyard-big_words"
    assert (names.folder / "src" / "taskyard_big_words" / "py.typed").is_file()
