"""Every regular expression of the framework takes time in proportion to its text, whatever the text is.

Each pattern is tried, with the methods that the code calls on it, on long texts that are made of what the pattern itself looks for: repeated
pieces and pairs of pieces, behind a beginning that matches, before an end that doesn't.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants as codes
from re import _parser as parser
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "api", "worker", "migrations", "plugins")
METHODS = ("match", "fullmatch", "search", "sub", "findall", "finditer", "split")
#: Characters of a text.
LENGTH = 40_000
#: Seconds of processor time. A text that takes less says nothing: a linear pattern takes some milliseconds, a quadratic one some seconds.
NOTABLE = 0.03
MOST = 10
#: Characters that stand for classes of them.
SAMPLES = "a1 _-.:/@\"'=,;%\\A\n<&?#~+é"


def _sources() -> dict[str, str]:
    """The text of every module, by the module's name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            start = next((at for at, part in enumerate(parts) if part.startswith("taskyard")), None)
            if start is not None and "templates" not in parts and path.name not in ("env.py", "__main__.py") and "versions" not in parts:
                found[".".join(part for part in parts[start:] if part != "__init__")] = path.read_text()
    return found


def _uses() -> dict[tuple[str, int], set[str]]:
    """(pattern, flags), with the methods that are called on each."""
    sources = _sources()
    everything = "\n".join(sources.values())
    found: dict[tuple[str, int], set[str]] = {}
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_call(node.value, ("compile",)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name):
                    pattern = getattr(importlib.import_module(name), target.id)
                    used = set(re.findall(rf"\b{target.id}\.(\w+)\(", everything)) & set(METHODS)
                    if isinstance(pattern.pattern, str):
                        found.setdefault((pattern.pattern, pattern.flags), set()).update(used)
            elif isinstance(node, ast.Call) and _is_call(node, METHODS):
                written = node.args[0]
                if isinstance(written, ast.Constant) and isinstance(written.value, str) and isinstance(node.func, ast.Attribute):
                    found.setdefault((written.value, 0), set()).add(node.func.attr)
    return found


def _is_call(node: Any, methods: tuple[str, ...]) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re" and function.attr in methods


def _pieces(tree: Any) -> Iterator[str]:
    """Texts that parts of a pattern look for, the shortest that each part takes."""
    literal = ""
    for code, argument in tree:
        if code in (codes.LITERAL, codes.NOT_LITERAL):
            literal += chr(argument) if code is codes.LITERAL else next(c for c in SAMPLES if c != chr(argument))
            continue
        yield from [literal] if literal else []
        literal = ""
        if code in (codes.IN, codes.ANY):
            yield _member(argument)
        for inner in _parts(argument):
            yield from _pieces(inner)
    yield from [literal] if literal else []


def _parts(argument: Any) -> Iterator[Any]:
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, tuple | list):
        for inner in argument:
            yield from _parts(inner)


def _member(members: Any) -> str:
    tree = parser.parse("x")
    tree.data = [(codes.IN, members)] if members else [(codes.ANY, None)]
    one = re._compiler.compile(tree, 0)  # type: ignore[attr-defined]  # typeshed leaves it out
    return next((c for c in SAMPLES if one.match(c)), "a")


def _example(tree: Any) -> list[str]:
    """A text that a pattern matches, part by part: the first of alternatives, and one of each repetition."""
    made: list[str] = []
    for code, argument in tree:
        if code is codes.LITERAL:
            made.append(chr(argument))
        elif code in (codes.IN, codes.ANY):
            made.append(_member(argument))
        elif code is codes.BRANCH:
            made += _example(argument[1][0])
        elif code not in (codes.ASSERT_NOT, codes.ASSERT):
            made += [part for inner in _parts(argument) for part in _example(inner)]
    return made


def _texts(pattern: str, flags: int) -> Iterator[str]:
    tree = parser.parse(pattern, flags & re.VERBOSE)
    pieces = list(dict.fromkeys(_pieces(tree)))[:8]
    beginnings = list(itertools.accumulate(_example(tree)))
    units = list(dict.fromkeys([*pieces, *("".join(pair) for pair in itertools.permutations(pieces, 2)), *beginnings]))
    beginnings = ["", *pieces[:2], "".join(pieces)]
    for unit, beginning in itertools.product(units, beginnings):
        yield beginning + (unit * (LENGTH // len(unit) + 1))[:LENGTH] + "\x00"


def steepest(run: Callable[[str], object], texts: Iterator[str]) -> float:
    """By how much the processor time of a text grows when the text is four times as long, of the text that is worst: 4 is linear, 16 quadratic."""
    found = 1.0
    for text in texts:
        if _seconds(run, text, 1) > NOTABLE:
            found = max(found, _seconds(run, text, 3) / _seconds(run, text[: LENGTH // 4] + text[-1], 3))
        if found > MOST:
            break
    return found


def _seconds(run: Callable[[str], object], text: str, times: int) -> float:
    """The processor time, not that of the clock; of several runs, the shortest."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        run(text)
        taken.append(time.process_time() - began)
    return min(taken)


def _run(pattern: re.Pattern[str], method: str) -> Callable[[str], object]:
    if method == "sub":
        return lambda text: pattern.sub("", text)
    return lambda text: sum(1 for _ in pattern.finditer(text)) if method in ("findall", "finditer", "split") else getattr(pattern, method)(text)


USES = [(pattern, flags, method) for (pattern, flags), methods in _uses().items() for method in sorted(methods)]


@pytest.mark.parametrize(("pattern", "flags", "method"), USES, ids=[f"{method} {pattern[:40]}" for pattern, _, method in USES])
def test_a_pattern_takes_time_in_proportion_to_its_text(pattern: str, flags: int, method: str) -> None:
    assert steepest(_run(re.compile(pattern, flags), method), _texts(pattern, flags)) < MOST


@pytest.mark.parametrize("pattern", [r"[a-z][a-z0-9+.-]*://", r"[?&][\w-]*(key)[\w-]*=", r"\$\{(env|file):[^}]*\}", r"\[[^\]]*\]"])
def test_this_test_finds_patterns_that_are_not_linear(pattern: str) -> None:
    assert steepest(_run(re.compile(pattern), "search"), _texts(pattern, 0)) > MOST


def test_the_patterns_of_the_framework_are_found() -> None:
    assert len(USES) > 40
