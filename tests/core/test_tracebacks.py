"""A traceback shows the frames of plugins whatever is around them, has a readable size, and names the place of the error."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskyard import logs
from taskyard.tracebacks import MAX_TRACEBACK, declared_at, place_of, readable, readable_stack

HERE = Path(__file__).name


def _raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it has raised nothing")


def _parse() -> None:
    json.loads("{")


def _recurse(left: int) -> None:
    return _recurse(left - 1) if left else _parse()


def _chain(links: int) -> None:
    try:
        _chain(links - 1) if links else _parse()
    except ValueError as error:
        raise ValueError(f"link {links}") from error


async def _fail_together() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_fail())


async def _fail() -> None:
    raise OSError("no route")


def test_library_frames_are_one_line_and_the_place_is_the_plugins() -> None:
    error = _raised(_parse)
    trace = readable(error)
    assert 'json.loads("{")' in trace
    assert "frames of json, down to" in trace
    assert "raw_decode(" not in trace, "the source of a library"
    assert str(place_of(error)).endswith(f"{HERE}:{_parse.__code__.co_firstlineno + 1}, in _parse")


def test_a_library_is_one_in_any_environments_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "lib" / "python3" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "library_elsewhere.py").write_text("def fail():\n    raise OSError('no route')\n")
    monkeypatch.syspath_prepend(packages)

    def use() -> None:
        __import__("library_elsewhere").fail()

    error = _raised(use)
    assert str(place_of(error)).endswith("in use")
    assert "(1 frame of library_elsewhere, down to" in readable(error)


def test_a_deep_recursion_keeps_its_beginning_and_its_end() -> None:
    trace = readable(_raised(lambda: _recurse(800)))
    assert "calls are left out" in trace
    assert "in _raised" in trace
    assert trace.index("in _recurse") < trace.index("in _parse")
    assert len(trace) <= MAX_TRACEBACK


def test_a_long_chain_keeps_the_last_error_and_says_what_is_left_out() -> None:
    trace = readable(_raised(lambda: _chain(100)))
    assert "earlier exceptions are left out" in trace
    assert trace.endswith("ValueError: link 100")
    assert len(trace) <= MAX_TRACEBACK


def test_causes_and_contexts_are_told_in_order() -> None:
    def during() -> None:
        try:
            _parse()
        except ValueError:
            raise KeyError("second")  # noqa: B904  # the context is what is tested

    trace = readable(_raised(during))
    assert trace.index("JSONDecodeError") < trace.index("During handling of the above exception") < trace.index("KeyError: 'second'")


def test_a_stack_is_shown_as_a_traceback_is_however_deep_a_library_stands() -> None:
    def stand(left: int) -> str:
        # A library between two calls: json calls back.
        return str(json.loads("[0]", parse_int=lambda _: stand(left - 1))[0]) if left else readable_stack(sys._getframe())

    shown = stand(30)
    assert shown.count("in stand") > 3
    assert "frames of json, down to" in shown
    assert "raw_decode(" not in shown, "the source of a library"
    assert shown.endswith("else readable_stack(sys._getframe())\n" + shown.splitlines()[-1])


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert readable(first).count("ValueError: first") == 1


def test_a_groups_place_is_that_of_its_first_member_and_all_are_shown() -> None:
    error = _raised(lambda: asyncio.run(_fail_together()))
    trace = readable(error)
    assert str(place_of(error)).endswith(f"{HERE}:{_fail.__code__.co_firstlineno + 1}, in _fail")
    assert "ExceptionGroup: unhandled errors in a TaskGroup" in trace
    assert "  | OSError: no route" in trace


def test_groups_of_groups_of_many_stay_readable() -> None:
    group: Exception = ValueError("leaf")
    for _ in range(8):
        group = ExceptionGroup("many", [group] * 8)
    assert len(readable(group)) <= MAX_TRACEBACK


@pytest.mark.parametrize("error", [ValueError("x" * 3_000_000), ValueError("\n" * 100_000), ValueError("a\x00b\ud800")])
def test_whatever_its_text_is_it_has_a_size_and_can_be_stored(error: Exception) -> None:
    def fail() -> None:
        raise error

    trace = readable(_raised(fail))
    assert len(trace) <= MAX_TRACEBACK
    assert "raise error" in trace
    assert "\x00" not in trace
    trace.encode()


def test_an_error_that_can_not_tell_its_text_is_told_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail() -> None:
        raise Mute

    assert "Mute" in readable(_raised(fail))


def test_secrets_are_masked() -> None:
    logs.hide(["correct-horse-battery"])

    def fail() -> None:
        password = "correct-horse-battery"
        raise ValueError(f"postgresql://me:{password}@db, password=other-secret and {password}" + "x" * 5000)

    trace = readable(_raised(fail))
    assert "correct-horse-battery" not in trace
    assert "other-secret" not in trace


def test_a_syntax_error_tells_the_file_that_can_not_be_read_with_a_caret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unreadable_source.py").write_text("a = 1\nb = (3 +\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = _raised(lambda: __import__("unreadable_source"))
    assert place_of(error) == f"{tmp_path / 'unreadable_source.py'}:2"
    assert "    b = (3 +\n        ^" in readable(error)


def test_no_plugin_code_no_place() -> None:
    assert place_of(ValueError()) is None


def test_declarations_have_places_and_builtins_have_none() -> None:
    assert str(declared_at(_parse)).endswith(f"{HERE}:{_parse.__code__.co_firstlineno}, in _parse")
    assert declared_at(len) is None
