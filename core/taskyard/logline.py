"""Lines of a task's log: how severe one may be, and how much of them is kept. Imports nothing: the client, the command line and the
children of a worker use it too.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Level = Literal["debug", "info", "warning", "error", "critical"]
#: The least severe first.
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
#: Bytes of a task's lines, as JSON, that are kept.
LIMIT: Final = 1_048_576
