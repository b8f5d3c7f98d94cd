"""docker-compose.yml as Docker Compose reads it, for tests on a machine without Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
#: ${NAME}, ${NAME:-default}, ${NAME:?message}; $$ is a dollar.
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}|\$(?P<bare>\w+)")


def variables(text: str) -> set[str]:
    """The names of the variables that a compose file uses."""
    code = "\n".join(line.partition(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {name for found in _VARIABLE.finditer(code) if (name := found["name"] or found["bare"])}


def example(**changed: str) -> dict[str, str]:
    """The variables of .env.example with the passwords that it leaves empty, some of them changed: what is made of a changed one changes too."""
    text = (ROOT / ".env.example").read_text()
    for name, value in ({"POSTGRES_PASSWORD": "a-password", "FLOWER_BASIC_AUTH": "boss:secret"} | changed).items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    return {name: value or "" for name, value in dotenv_values(stream=StringIO(text)).items()}


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables filled in and its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    filled: dict[str, Any] = _fill(loaded, environment)
    return filled


def _fill(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(inner, environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, environment) for inner in value]
    return _VARIABLE.sub(lambda found: _value(found, environment), value) if isinstance(value, str) else value


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    value = environment.get(found["name"] or found["bare"], "")
    if not value and found["how"] == "?":
        raise KeyError(f"{found['name']}: {found['rest']}")
    return value or (found["rest"] if found["how"] == "-" else "")


def seconds(duration: str) -> float:
    """A compose duration such as 45s or 1m30s."""
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))


def mebibytes(size: str) -> float:
    """A compose size such as 512m or 1g."""
    return float(size[:-1]) * {"g": 1024, "m": 1}[size[-1]]
