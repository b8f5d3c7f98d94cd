"""`taskyard plugins new`: a distribution that passes its own tests. The decisions are here, the files' texts in templates/."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Literal

import importlib_metadata

from taskyard import __version__
from taskyard.errors import TaskyardError
from taskyard.plugins import GROUP
from taskyard.settings import PluginSettings

Kind = Literal["handler", "notifier"]

#: Words of lower-case letters and digits with - or _ between them: a plugin's name, and what PyPI takes after `taskyard-`.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
LONGEST_NAME = 40
_PREFIX = re.compile(r"taskyard[-_]")
_SUFFIX = ".tmpl"


class CantMake(TaskyardError):
    """A plugin of that name can't be made there."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a new plugin's parts are called."""

    plugin: str
    folder: Path

    @property
    def distribution(self) -> str:
        """The name on PyPI."""
        return f"taskyard-{self.plugin.replace('_', '-')}"

    @property
    def module(self) -> str:
        """The package that Python imports."""
        return f"taskyard_{self.plugin.replace('-', '_')}"

    @property
    def words(self) -> dict[str, str]:
        """What the templates' placeholders stand for."""
        major, minor = __version__.split(".")[:2]
        requires = f">={major}.{minor},<{int(major) + 1}"
        return {"name": self.plugin, "distribution": self.distribution, "module": self.module, "requires": requires, "folder": self.folder.name}


def make_plugin(name: str, kind: Kind, parent: Path) -> Names:
    """Write a new plugin into a folder of its own below ``parent``, all or nothing.

    Raises:
        CantMake: the name is no good or taken, the folder is there, or it can't be written.
    """
    names = Names(_PREFIX.sub("", name, count=1), parent / name)
    _refuse_bad_name(names.plugin)
    _refuse_taken(names)
    if names.folder.exists():
        raise CantMake(f"{names.folder} is there already. Choose another name, or another place with --dir.")
    texts = {path: Template(text).substitute(names.words) for path, text in _templates(kind, names.words)}
    try:
        for path, text in texts.items():
            target = names.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CantMake(f"{names.folder} can't be written: {error.strerror or error}") from error
    return names


def _refuse_bad_name(plugin: str) -> None:
    if not NAME_PATTERN.fullmatch(plugin) or len(plugin) > LONGEST_NAME:
        good = re.sub(r"[^a-z0-9]+", "-", plugin.lower()).strip("-0123456789")[:LONGEST_NAME].rstrip("-")
        hint = f" Try {good!r}." if NAME_PATTERN.fullmatch(good) else ""
        rule = "lower-case letters and digits, starting with a letter, with single - or _ between words"
        raise CantMake(f"{plugin!r} is no plugin's name: expected {rule}, at most {LONGEST_NAME} characters.{hint}")
    if plugin in PluginSettings.model_fields:
        raise CantMake(f"A plugin can't be named {plugin!r}: plugins.{plugin} is a setting of Taskyard's own.")


def _refuse_taken(names: Names) -> None:
    dashed = names.plugin.replace("_", "-")
    for entry in importlib_metadata.entry_points(group=GROUP):
        if entry.name.replace("_", "-") == dashed:
            raise CantMake(f"A plugin {entry.name!r} is installed already, by {entry.dist.name if entry.dist else entry.value}. Choose another name.")
    try:
        importlib_metadata.distribution(names.distribution)
    except importlib_metadata.PackageNotFoundError:
        pass
    else:
        raise CantMake(f"A distribution {names.distribution!r} is installed already. Choose another name.")
    if importlib.util.find_spec(names.module) is not None:
        raise CantMake(f"There is a Python module {names.module!r} already. Choose another name.")


def _templates(kind: Kind, words: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """Each file's path, below the plugin's folder, and its text with placeholders."""
    for part in ("common", kind):
        yield from _below(files(__package__) / "templates" / part, Path(), words)


def _below(folder: Traversable, path: Path, words: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for item in folder.iterdir():
        name = item.name.removesuffix(_SUFFIX).replace("MODULE", words["module"]).replace("DOT", ".")
        if item.is_dir():
            yield from _below(item, path / name, words)
        elif item.name.endswith(_SUFFIX):
            yield path / name, item.read_text(encoding="utf-8")
