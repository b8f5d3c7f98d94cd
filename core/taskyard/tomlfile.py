"""A configuration file: its tables, the line of each key, and the references that its strings may hold."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskyard.errors import ConfigurationError
from taskyard.modelinfo import Key

#: A name that is longer than any variable's or path's stays as it is written.
_REFERENCE = re.compile(r"\$\{(env|file):((?:[^}$]|\$(?!\{))*)\}")


def read_text(path: Path) -> str:
    """A file's text, without the byte order mark that Windows' editors put before it.

    Raises:
        ConfigurationError: it can't be read, or is not UTF-8; names the path.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {(error.strerror or 'failed').lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: expected text in UTF-8; byte {error.start} is not") from error


def read_toml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The tables, and the line of each key."""
    text = read_text(path)
    try:
        return tomllib.loads(text), _lines_by_key(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error


_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"-]+)\s*\]\]?")
_PAIR = re.compile(r"\s*([\w-]+)\s*=")


def _lines_by_key(text: str) -> dict[Key, int]:
    """The line of each table, and of each plain ``key = value`` in it. Of a list of tables (``[[routes]]``) the key has the position, from 0.

    Only for error messages: what it can't read it passes over.
    """
    lines: dict[Key, int] = {}
    counts: dict[str, int] = {}
    table: Key = ()
    for number, line in _statements(text):
        if header := _HEADER.match(line):
            table = _table(header[2].replace('"', "").split("."), header[1] == "[[", counts)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], number)
        elif pair := _PAIR.match(line):
            lines.setdefault((*table, pair[1]), number)
    return lines


def _table(parts: list[str], repeated: bool, counts: dict[str, int]) -> Key:
    """A header as a key: a list of tables means its newest one. Lists of tables are at the top: there are no others in this file."""
    first, rest = parts[0], parts[1:]
    if repeated and not rest:
        counts[first] = counts.get(first, -1) + 1
    return (first, str(counts[first]), *rest) if first in counts else tuple(parts)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The lines that may begin something: not those inside of a text of several lines, such as a template."""
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if inside:
            inside = "" if inside in line else inside
            continue
        yield number, line
        opened = re.search(r"=\s*(\"{3}|'{3})", line)
        if opened and line.count(opened[1]) == 1:
            inside = opened[1]


def references(value: Any, key: Key = ()) -> Iterator[tuple[Key, str, str]]:
    """The ``${env:NAME}`` and ``${file:PATH}`` in a value's strings, as (where inside of it, kind, name)."""
    if isinstance(value, str):
        yield from ((key, kind, name) for kind, name in _REFERENCE.findall(value))
    elif isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from references(inner, (*key, str(part)))


def substitute(value: Any, resolved: Mapping[tuple[str, str], str]) -> Any:
    """The value with each reference replaced by what it resolved to."""
    if isinstance(value, dict):
        return {name: substitute(inner, resolved) for name, inner in value.items()}
    if isinstance(value, list):
        return [substitute(inner, resolved) for inner in value]
    return _REFERENCE.sub(lambda match: resolved[match[1], match[2]], value) if isinstance(value, str) else value


def resolve(kind: str, name: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What a reference stands for. A file's path is relative to ``folder``; its last newline is dropped.

    Raises:
        ConfigurationError: the variable is not set, or the file can't be read.
    """
    if kind == "file":
        return read_text(folder / name).removesuffix("\n").removesuffix("\r")
    if name not in variables:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return variables[name]
