"""`taskyard submit`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from taskyard.cli.output import AsJson, console, write_json, write_pairs
from taskyard.cli.rest import DEFAULT_URL, Key, Service, Url
from taskyard.masking import escape_controls


def _time(given: str) -> str:
    try:
        return datetime.fromisoformat(given).astimezone().isoformat()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{given!r} is no time; expected one such as 2030-01-31T12:00:00 or 2030-01-31T12:00:00+01:00") from error


def submit(
    type: Annotated[str, typer.Argument(help="Task type, such as http.request.", metavar="TYPE")],
    payload: Annotated[str, typer.Option(help="Payload: JSON, @FILE, or - for standard input.", metavar="JSON|@FILE|-")] = "{}",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the task's end; exit with 1 unless it succeeded.")] = False,
    priority: Annotated[int | None, typer.Option(help="0 to 9; 9 is the most urgent.")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue; each type has one of its own by default.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds to wait before the first run.")] = None,
    run_at: Annotated[str | None, typer.Option(help="Time of the first run (RFC 3339; local without an offset).", parser=_time, metavar="TIME")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Time after which it is not started any more.", parser=_time, metavar="TIME")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one run may take.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries at most.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeat for more.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object that travels with the task.", metavar="JSON")] = None,
    unique_key: Annotated[str | None, typer.Option(help="At most one live task has this key.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Repeat the command with this key, and no second task is made.")] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, and submit nothing.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Submit a task."""
    if wait and validate_only:
        raise typer.BadParameter("a task that is not submitted has no end to wait for", param_hint="--validate-only")
    options = {"priority": priority, "queue": queue, "delay": delay, "run_at": run_at, "expires_at": expires_at, "timeout": timeout}
    more = {"max_attempts": max_attempts, "tags": tag, "metadata": metadata and _json("--metadata", metadata), "unique_key": unique_key}
    body = {"type": type, "payload": _json("--payload", _payload_text(payload))}
    body |= {name: value for name, value in [*options.items(), *more.items()] if value is not None}
    with Service(url, key) as service:
        params = {"validate_only": "true"} if validate_only else None
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        task = service.call("POST", "tasks", body=body, params=params, headers=headers)
        if wait:
            task = wait_for(service, task, quiet=as_json)
    show_task(task, as_json=as_json)
    if wait and task["status"] != "succeeded":
        raise typer.Exit(1)


def wait_for(service: Service, task: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Follow a task to its end, with its status and progress shown to people on standard error."""
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console(err=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        line = bar.add_task(task["status"], total=None)
        latest = task
        for latest in service.follow(task["id"]):
            progress = latest.get("progress") or {}
            fraction = progress.get("fraction")
            message = escape_controls(f"{latest['type']} {latest['status']}  {progress.get('message') or ''}").replace("[", r"\[")
            bar.update(line, description=message, total=None if fraction is None else 1.0, completed=fraction or 0)
    return latest


def show_task(task: dict[str, Any], *, as_json: bool) -> None:
    """Write one task."""
    if as_json:
        write_json(task)
    else:
        write_pairs((name.replace("_", " "), value) for name, value in task.items() if name != "version")


def _payload_text(given: str) -> str:
    try:
        if given in ("-", "@-"):
            return sys.stdin.read()
        return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"can't read {given.removeprefix('@')}: {error}", param_hint="--payload") from error


def _json(option: str, given: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not valid JSON: {error}", param_hint=option) from error
