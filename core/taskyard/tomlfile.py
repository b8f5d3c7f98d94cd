"""A configuration file: its tables, the line of each key, and the references that its strings may hold."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskyard.errors import ConfigurationError
from taskyard.modelinfo import Key

_REFERENCE = re.compile(r"\$\{(env|file):([^}]*)\}")


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        ConfigurationError: it can't be read, or is not UTF-8; names the path.
    """
    try:
        return path.read_text(encoding="utf-8")
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


def _lines_by_key(text: str) -> dict[Key, int]:
    """The line of each plain ``key = value`` under its ``[table]``. Only for error messages: what it can't read it passes over."""
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.\"-]+)\s*\]\]?", line):
            table = tuple(part.strip('"') for part in header[1].split("."))
            lines.setdefault(table[:1], number)
        elif pair := re.match(r"\s*([\w-]+)\s*=", line):
            lines.setdefault((*table, pair[1]), number)
    return lines


def references(value: Any) -> Iterator[tuple[str, str]]:
    """The ``${env:NAME}`` and ``${file:PATH}`` in a value's strings, as (kind, name)."""
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from references(inner)


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
