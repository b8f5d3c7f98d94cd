"""Where settings come from: a TOML file, ``.env`` and the environment, merged by strength, the place of each value kept.

Knows nothing of the settings' meaning: :func:`read` takes the model that they are validated against.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from taskyard.dotenv_file import read_dotenv
from taskyard.errors import ConfigurationError
from taskyard.modelinfo import PREFIX, Key, annotation_of, environment_names, is_list, is_table, section_of, sentences
from taskyard.spelling import did_you_mean
from taskyard.tomlfile import read_toml, references, resolve, substitute

#: TASKYARD_ variables that are no settings: for finding the file, for clients, for what the process plugin starts, and for tests.
NOT_SETTINGS = ("TASKYARD_CONFIG", "TASKYARD_URL", "TASKYARD_KEY", "TASKYARD_PROFILE", "TASKYARD_TASK_ID", "TASKYARD_ATTEMPT", "TASKYARD_FAILPOINTS")
#: Kubernetes sets these in every container beside a Service that is named taskyard (or taskyard-web, ...).
_KUBERNETES = re.compile(r"TASKYARD_(\w{1,63}_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d{1,5}_(TCP|UDP|SCTP)\w*)")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value as it was written, and where. ``folder`` is set where its strings may hold references, ``lines`` where it is from a file."""

    value: Any
    source: str
    line: int | None = None
    variable: str | None = None
    folder: Path | None = None
    lines: Mapping[Key, int] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """The place, for people: file, line and setting, or the variable."""
        return f"{self.place(key)}: {self.variable or '.'.join(key)}"

    def place(self, key: Key) -> str:
        """The place without the setting's name. Of a key inside of the value it is the line of the nearest thing around it."""
        line = self.line or next((self.lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in self.lines), None)
        return self.source + (f", line {line}" if line else "")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """Validated settings, and the place of each key that something set."""

    settings: M
    places: dict[Key, str]
    #: The place of each value that something set, and of what is inside of it, without its name: ``taskyard.toml, line 7``.
    lines: dict[Key, str]


def read(
    model: type[M],
    *,
    config: Path | None,
    aliases: Mapping[str, Key],
    fallback: Callable[[Mapping[str, str]], dict[Key, Leaf]],
    overrides: Mapping[str, Any],
) -> Loaded[M]:
    """Settings from all sources, the strongest first: overrides, environment, ``.env``, TOML, ``fallback(variables)``.

    Raises:
        ConfigurationError: one line for each problem, with its place and never a value.
    """
    dotenv, lines = read_dotenv(Path(".env"), lambda name: name in aliases or name.startswith((PREFIX, "POSTGRES_")))
    reader = _Reader(model, aliases, dotenv | os.environ)
    reader.leaves |= fallback(reader.variables)
    if path := _config_path(config, reader.variables):
        reader.add_toml(path)
    reader.add_variables(".env", dotenv, lines)
    reader.add_variables("environment", os.environ, {})
    reader.add_overrides(overrides)
    return reader.finish()


@dataclass(slots=True)
class _Reader(Generic[M]):
    model: type[M]
    aliases: Mapping[str, Key]
    variables: Mapping[str, str]
    leaves: dict[Key, Leaf] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_toml(self, path: Path) -> None:
        tables, lines = read_toml(path)
        for key, value in self._flatten(tables, str(path)):
            self.leaves[key] = Leaf(value, str(path), folder=path.parent, lines=lines)

    def _flatten(self, tables: dict[str, Any], source: str) -> Iterator[tuple[Key, Any]]:
        for section, table in tables.items():
            known = self.model.model_fields.get(section)
            if not isinstance(table, dict):
                if known and section_of(known.annotation):
                    self.problems.append(f"{source}: {section}: expected a table, [{section}]")
                else:
                    yield (section,), table
                continue
            for name, value in table.items():
                if section != "plugins" or annotation_of(self.model, (section, name)):
                    yield (section, name), value
                elif isinstance(value, dict):
                    yield from (((section, name, option), inner) for option, inner in value.items())
                else:
                    self.problems.append(f"{source}: plugins.{name}: expected a table, [plugins.{name}].{did_you_mean(name, ('only', 'disabled'))}")

    def add_variables(self, source: str, variables: Mapping[str, str], lines: Mapping[str, int]) -> None:
        """Leaves from variables; the common names give way to TASKYARD_ ones. An empty variable counts as unset."""
        known = environment_names(self.model)
        named = [(name, key) for name, key in self.aliases.items() if name in variables]
        for name, value in variables.items():
            if name.startswith(PREFIX) and not _is_foreign(name, value):
                if key := self._key_of(name, known):
                    named.append((name, key))
                else:
                    self.problems.append(Leaf(value, source, lines.get(name), name).where(()) + f": no such setting.{did_you_mean(name, known)}")
        for name, key in named:
            if variables[name]:
                leaf = Leaf(variables[name], source, lines.get(name), name)
                self.leaves[key] = replace(leaf, value=self._decode(key, leaf))

    def _key_of(self, name: str, known: Mapping[str, Key]) -> Key | None:
        parts = name.removeprefix(PREFIX).lower().split("__")
        if name not in known and parts[0] == "plugins" and len(parts) >= 3 and all(parts):
            return ("plugins", self._plugin_name(parts[1]), *parts[2:])
        return known.get(name)

    def _plugin_name(self, name: str) -> str:
        """A variable's name can't hold a dash: MY_PLUGIN means ``my-plugin`` where the file has that one."""
        written = (key[1] for key in self.leaves if key[0] == "plugins" and len(key) > 2)
        return next((other for other in written if other.replace("-", "_") == name), name)

    def _decode(self, key: Key, leaf: Leaf) -> Any:
        """A variable's lists and tables are JSON; lists of words may be comma separated."""
        text: str = leaf.value
        annotation = annotation_of(self.model, key)
        listed = is_list(annotation)
        if text[0] in "[{" and (listed or is_table(annotation) or len(key) > 2):
            try:
                return json.loads(text)
            except ValueError:
                self.problems.append(f"{leaf.where(key)}: not valid JSON")
        return [part.strip() for part in text.split(",") if part.strip()] if listed else text

    def add_overrides(self, overrides: Mapping[str, Any]) -> None:
        for section, values in overrides.items():
            if isinstance(values, Mapping):
                self.leaves |= {(section, name): Leaf(value, "argument") for name, value in values.items() if value is not None}
            elif values is not None:
                self.leaves[(section,)] = Leaf(values, "argument")

    def finish(self) -> Loaded[M]:
        nested: dict[str, Any] = {}
        for key, leaf in self.leaves.items():
            try:
                self._place(nested, key, self._resolved(key, leaf))
            except ConfigurationError as error:
                self.problems += str(error).splitlines()
        settings = None
        try:
            settings = self.model.model_validate(nested)
        except ValidationError as error:
            self.problems += [f"{self._where(key)}: {sentence}" for key, sentence in sentences(self.model, error)]
        if self.problems or settings is None:
            raise ConfigurationError("\n".join(self.problems))
        lines = {inner: leaf.place(inner) for key, leaf in self.leaves.items() for inner in {key, *(k for k in leaf.lines if k[: len(key)] == key)}}
        return Loaded(settings, {key: leaf.where(key) for key, leaf in self.leaves.items()}, lines)

    def _resolved(self, key: Key, leaf: Leaf) -> Any:
        """References are looked up only here: one that a stronger source overrides may point nowhere."""
        if leaf.folder is None:
            return leaf.value
        found, problems = {}, []
        for inner, kind, name in references(leaf.value):
            try:
                found[kind, name] = resolve(kind, name, leaf.folder, self.variables)
            except ConfigurationError as error:
                problems.append(f"{leaf.where((*key, *inner))}: {error}")
        if problems:
            raise ConfigurationError("\n".join(problems))
        return substitute(leaf.value, found)

    def _place(self, table: Any, key: Key, value: Any) -> None:
        for part in key[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigurationError(f"{self.leaves[key].where(key)}: {part} is not a table elsewhere")
        table[key[-1]] = value

    def _where(self, key: Key) -> str:
        leaf = next((leaf for other, leaf in self.leaves.items() if other[: len(key)] == key[: len(other)]), None)
        return leaf.where(key) if leaf else ".".join(key)


def _is_foreign(name: str, value: str) -> bool:
    """Is this variable none of the settings' business?"""
    return name in NOT_SETTINGS or name.startswith("TASKYARD_TEST_") or bool(_KUBERNETES.fullmatch(name)) or value.startswith("tcp://")


def _config_path(config: Path | None, variables: Mapping[str, str]) -> Path | None:
    if named := config or variables.get("TASKYARD_CONFIG"):
        path = Path(named)
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file ({'given as the configuration' if config else 'named by TASKYARD_CONFIG'})")
        return path
    default = Path("taskyard.toml")
    return default if default.is_file() else None
