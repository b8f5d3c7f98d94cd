"""The ``.env`` file: its variables, and the line of each.

``${NAME}`` stands for another variable of the file or of the environment, ``${NAME:-text}`` for ``text`` where that is not set. In single
quotes, all is taken as it is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from taskyard.errors import ConfigurationError
from taskyard.tomlfile import read_text


def read_dotenv(path: Path, is_ours: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, int]]:
    """The variables of the file, if it is there, and the line of each.

    A variable that refers to one that is not set is left out.

    Raises:
        ConfigurationError: a line is no assignment, or a variable that ``is_ours`` refers to one that is not set; names the line.
    """
    if not path.is_file():
        return {}, {}
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, binding in _statements(path):
        name, value = binding.key, binding.value
        if name is None or value is None:
            continue
        known = dict(os.environ) | found
        # A later line replaces an earlier one, also where it can't be resolved.
        found.pop(name, None)
        lines[name] = line
        if unset := None if _is_literal(binding) else _unset(value, known):
            if is_ours(name):
                raise ConfigurationError(
                    f"{path}, line {line}: {name}: ${{{unset}}} stands for the variable {unset!r}, which is not set. "
                    "Set it, or put the value in single quotes to keep the text as it is."
                )
            continue
        found[name] = value if _is_literal(binding) else "".join(atom.resolve(known) for atom in parse_variables(value))
    return found, lines


def _statements(path: Path) -> Iterator[tuple[int, Binding]]:
    for binding in parse_stream(StringIO(read_text(path))):
        # A statement begins with the blank lines before it.
        written = binding.original.string
        line = binding.original.line + written[: len(written) - len(written.lstrip())].count("\n")
        if binding.error:
            raise ConfigurationError(f"{path}, line {line}: expected NAME=value")
        yield line, binding


def _is_literal(binding: Binding) -> bool:
    _, _, written = binding.original.string.partition("=")
    return written.lstrip().startswith("'")


def _unset(value: str, known: dict[str, str]) -> str | None:
    """The first variable that a value refers to and that has neither value nor default."""
    variables = (atom for atom in parse_variables(value) if isinstance(atom, Variable))
    return next((variable.name for variable in variables if variable.default is None and variable.name not in known), None)
