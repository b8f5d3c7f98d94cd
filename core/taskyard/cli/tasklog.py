"""``taskyard tasks logs``: what a task's handler has logged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from taskyard import logline
from taskyard.cli.output import AsJson, console, local_time, say, text, write_json
from taskyard.cli.rest import Key, ProfileName, Url, complete_id, connect
from taskyard.client import LogLine

LogId = Annotated[str, typer.Argument(help="Task id.", metavar="ID", autocompletion=complete_id)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines, until the task has ended.")]
Least = Annotated[logline.Level, typer.Option("--level", help="Least severity.")]


def logs(
    id: LogId,
    follow: Follow = False,
    level: Least = "debug",
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Show what a task's handler has logged."""
    wanted = logline.LEVELS[logline.LEVELS.index(level) :]
    with connect(url, key, profile) as client:
        if dropped := client.call("GET", "tasks", id, "logs", params={"limit": 1})["dropped"]:
            say(f"{dropped} lines are not kept: there was more than 1 MiB of them, or they came faster than they could be written.")
        if not follow:
            for line in client.logs(id, level=wanted):
                _show(line, as_json=as_json)
            return
        for event in client.follow(id):
            if event.type == "task.log" and event.data["level"] in wanted:
                head = {"id": event.id, "time": event.time, "attempt": event.attempt}
                _show(LogLine.model_validate(head | dict(event.data)), as_json=as_json)


def _show(line: LogLine, *, as_json: bool) -> None:
    if as_json:
        write_json(line.model_dump(mode="json"), indent=None)
        return
    console().print(text(" ".join(_words(line.time, line.level, line.message, line.fields))))


def _words(time: datetime, level: str, message: str, fields: Mapping[str, Any]) -> list[str]:
    said = [f"{name}={value}" for name, value in fields.items() if name != "exception"]
    return [local_time(time), f"{level:8}", message, *said, *([str(fields["exception"])] if "exception" in fields else [])]
