"""``Prefer: wait=N`` (RFC 7240): the client would rather wait for a task's end than ask again."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header

MAX_WAIT = 60
DESCRIPTION = f"`wait=N` waits up to N seconds ({MAX_WAIT} at most) for the task to end. What was waited for is in `Preference-Applied`."
Prefer = Annotated[list[str] | None, Header(include_in_schema=False)]
PREFER = {"name": "Prefer", "in": "header", "description": DESCRIPTION, "schema": {"type": "string"}, "example": "wait=10"}
# A preference (RFC 7240, 2): a name, perhaps a value, perhaps parameters, which `wait` has none of.
_WAIT = re.compile(r'[ \t]*wait[ \t]*=[ \t]*(?:"(\d{1,9})"|(\d{1,9}))[ \t]*(?:;.*)?', re.IGNORECASE)


def wait_of(given: list[str] | None) -> int | None:
    """Seconds to wait. None: nothing was said of it, or nothing that can be understood, which is no error (RFC 7240, 2)."""
    preferences = [part for header in given or () for part in header.split(",")]
    # Of one that is there twice, the first counts.
    first = next((part for part in preferences if re.split("[=;]", part, maxsplit=1)[0].strip().lower() == "wait"), None)
    found = _WAIT.fullmatch(first) if first else None
    return min(MAX_WAIT, int(found[1] or found[2])) if found else None


def applied(seconds: int) -> dict[str, str]:
    """The header that says what was done (RFC 7240, 3)."""
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"}
