"""Named services: their addresses and keys, in a file of the user's own.

::

    default = "local"

    [local]
    url = "http://127.0.0.1:8000"

    [prod]
    url = "https://tasks.example.com"
    key = "${file:prod.key}"

The file is ``$XDG_CONFIG_HOME/taskyard/profiles.toml``, mostly ``~/.config/taskyard/profiles.toml`` (XDG Base Directory Specification).
``${env:NAME}`` and ``${file:PATH}`` stand for secrets, as in ``taskyard.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from taskyard.client.exchange import DEFAULT_URL, check_key, check_url
from taskyard.errors import ConfigurationError
from taskyard.modelinfo import sentences
from taskyard.spelling import did_you_mean
from taskyard.tomlfile import read_toml, references, resolve, substitute


class Profile(BaseModel):
    """One service."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Profiles:
    """The profiles of a file, as they are written there, and which one is meant when none is named."""

    path: Path
    tables: Mapping[str, Any] = field(default_factory=dict)
    default: str | None = None

    def get(self, name: str, environment: Mapping[str, str]) -> Profile:
        """A profile by its name, its secrets resolved.

        Raises:
            ConfigurationError: there is none, or something is wrong with it.
        """
        if name not in self.tables:
            raise ConfigurationError(f"{self.path} has no profile {name!r}.{did_you_mean(name, self.tables)}")
        where = f"{self.path}: [{name}]"
        try:
            resolved = {(kind, word): resolve(kind, word, self.path.parent, environment) for _, kind, word in references(self.tables[name])}
            profile = Profile.model_validate(substitute(self.tables[name], resolved))
            check_url(profile.url)
            check_key(profile.key)
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(key) or 'it'}: {sentence}" for key, sentence in sentences(Profile, error))
            raise ConfigurationError(f"{where}: {told}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        return profile

    def is_exposed(self) -> bool:
        """Does the file hold keys themselves, and may others read it?"""
        keys = [table.get("key") for table in self.tables.values() if isinstance(table, dict)]
        written = any(isinstance(key, str) and key and not re.fullmatch(r"\$\{(env|file):[^}]*\}", key) for key in keys)
        return written and bool(self.path.stat().st_mode & 0o077)


def path_of(environment: Mapping[str, str]) -> Path:
    """Where the file is, or would be."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # A relative path there is to be ignored, says the specification.
    folder = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / ".config"
    return folder / "taskyard" / "profiles.toml"


def read(environment: Mapping[str, str]) -> Profiles:
    """The user's profiles; none where there is no file.

    Raises:
        ConfigurationError: the file can't be read or is not as expected.
    """
    path = path_of(environment)
    if not path.is_file():
        return Profiles(path)
    tables, lines = read_toml(path)
    default = tables.pop("default", None)
    strange = next((name for name, table in tables.items() if not isinstance(table, dict)), None)
    if strange is not None:
        line = f", line {lines[(strange,)]}" if (strange,) in lines else ""
        raise ConfigurationError(f"{path}{line}: {strange}: expected a table, such as [{strange}] with a url in it.{did_you_mean(strange, ['default'])}")
    if default is not None and default not in tables:
        raise ConfigurationError(f"{path}: default: there is no profile {default!r}.{did_you_mean(str(default), tables)}")
    return Profiles(path, tables, default)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to call, and with which key (none, if empty)."""

    url: str
    key: str


def choose(url: str | None, key: str | None, profile: str | None, profiles: Profiles, environment: Mapping[str, str]) -> Place:
    """Where to call: by what the caller says, then by the profile that the caller names, then by ``TASKYARD_URL`` and ``TASKYARD_KEY``, then by
    the profile that ``TASKYARD_PROFILE`` or the file names.

    A profile's key goes to the profile's own address only: never to one that came from elsewhere.

    Raises:
        ConfigurationError: there is no such profile, or something is wrong with it.
    """
    name = profile or environment.get("TASKYARD_PROFILE") or profiles.default
    chosen = profiles.get(name, environment) if name else None
    named = chosen if profile else None
    address = url or (named.url if named else None) or environment.get("TASKYARD_URL") or (chosen.url if chosen else None) or DEFAULT_URL
    own = chosen.key if chosen and chosen.url.rstrip("/") == address.rstrip("/") else ""
    secret = key if key is not None else (own or environment.get("TASKYARD_KEY", "") if named else environment.get("TASKYARD_KEY") or own)
    return Place(address, secret)
