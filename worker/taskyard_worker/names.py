"""A worker's name: what may be one, and that no other worker has it now."""

from __future__ import annotations

import re
import uuid
from typing import Final

from celery.utils.nodenames import host_format

from taskyard.errors import ConfigurationError

_PART: Final = "[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME: Final = re.compile(f"{_PART}@{_PART}")
#: A broker queue of Celery's has the name in its own, which has 255 bytes at most.
_LONGEST: Final = 200


def full_name(given: str | None) -> str:
    """A worker's name with its host. Without ``given``, a new one: several workers on one host need names that differ.

    As for Celery, ``%h`` stands for the host's name, ``%n`` for its first part and ``%d`` for the rest.

    Raises:
        ConfigurationError: it is no name.
    """
    wanted = f"taskyard-{uuid.uuid4().hex[:6]}" if given is None else given
    try:
        # Celery's own rule takes a name without @ for a host's.
        name = host_format(wanted if "@" in wanted else f"{wanted}@%h")
    except (KeyError, ValueError):
        name = wanted
    return checked(name, given)


def checked(name: str, given: str | None = None) -> str:
    """A full name that may be one. ``given`` is what was written. Raises ConfigurationError."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{(given or name)[:_LONGEST]!r} can't be a worker's name: expected letters, digits, '.', '_' and '-', and perhaps '@' and a host's name, "
            f"such as w1 or w1@ops, {_LONGEST} characters at most."
        )
    return name
