"""How severe a line of a task's log is. Imports nothing: the client and the command line use it too."""

from __future__ import annotations

from typing import Final, Literal, get_args

Level = Literal["debug", "info", "warning", "error", "critical"]
#: The least severe first.
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
