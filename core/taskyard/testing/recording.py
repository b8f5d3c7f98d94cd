"""A logger for tests: what a handler says to ``ctx.log`` is kept, and still written as usual."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line: ``level`` is debug, info, warning, error or critical; ``fields`` are the keywords it was logged with."""

    level: str
    message: str
    fields: dict[str, Any]


def recording_log(name: str, lines: list[LogLine]) -> Any:
    """A structlog logger that adds each line to ``lines``."""

    def keep(_: Any, level: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.append(LogLine(level, str(line.get("event", "")), {key: value for key, value in line.items() if key != "event"}))
        return line

    configured = structlog.get_config()
    return structlog.wrap_logger(
        configured["logger_factory"](name), processors=[keep, *configured["processors"]], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
