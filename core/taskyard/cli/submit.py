"""`taskyard submit`."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from taskyard.cli.output import AsJson, console, json_text, say, write_json, write_lines, write_pairs
from taskyard.cli.rest import Key, ProfileName, Url, complete_queue, complete_type, connect
from taskyard.cli.submit_lines import submit_lines
from taskyard.client import Client, Event, New, Retries, Task
from taskyard.client.models import Answer
from taskyard.masking import escape_controls
from taskyard.storable import read_json
from taskyard.task_options import Options

#: A file of tasks may take its time, and be over a quota for a while.
PATIENT = Retries(most=20)


def _time(given: str) -> str:
    try:
        return datetime.fromisoformat(given).astimezone().isoformat()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{given!r} is no time; expected one such as 2030-01-31T12:00:00 or 2030-01-31T12:00:00+01:00") from error


def submit(
    type: Annotated[str | None, typer.Argument(help="Task type, such as http.request.", metavar="[TYPE]", autocompletion=complete_type)] = None,
    payload: Annotated[str | None, typer.Option(help="Payload: JSON, @FILE, or - for standard input. [default: {}]", metavar="JSON|@FILE|-")] = None,
    lines: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="File of JSON lines, or - for standard input: a task with type and payload on each. Type and options here are for lines that do not say. "
            "The same lines are submitted once, however often the command is run.",
            metavar="FILE|-",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the task's end; exit with 1 unless it succeeded.")] = False,
    priority: Annotated[int | None, typer.Option(help="0 to 9; 9 is the most urgent.")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue; each type has one of its own by default.", autocompletion=complete_queue)] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds to wait before the first run.")] = None,
    run_at: Annotated[str | None, typer.Option(help="Time of the first run (RFC 3339; local without an offset).", parser=_time, metavar="TIME")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Time after which it is not started any more.", parser=_time, metavar="TIME")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one run may take.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries at most.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeat for more.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object that travels with the task.", metavar="JSON")] = None,
    unique_key: Annotated[str | None, typer.Option(help="At most one live task has this key.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeat the command with this key, and no second task is made. With --from, another key submits the same lines again.")
    ] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, and submit nothing.")] = False,
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Submit a task. With --from, many from a file."""
    _check_use(type, payload, lines, wait=wait, validate_only=validate_only)
    given: dict[str, Any] = {"priority": priority, "queue": queue, "delay": delay, "run_at": run_at, "expires_at": expires_at, "timeout": timeout}
    given |= {"max_attempts": max_attempts, "tags": tag, "metadata": metadata and _json("--metadata", metadata), "unique_key": unique_key}
    # What is wrong with a value is the service's to say.
    options = cast(Options, {name: value for name, value in given.items() if value is not None})
    if lines is not None:
        defaults = {**options} if type is None else {"type": type, **options}
        with connect(url, key, profile, retries=PATIENT) as client:
            submit_lines(client, lines, defaults, idempotency_key or "", validate_only=validate_only, as_json=as_json)
        return
    assert type is not None
    body = _json("--payload", _payload_text(payload or "{}"))
    with connect(url, key, profile) as client:
        if validate_only:
            write_answer(client.check(New(type, body, **options)), as_json=as_json)
            return
        handle = client.submit(type, body, idempotency_key=idempotency_key, **options)
        if handle.warning:
            say(f"Warning: {handle.warning}.")
        task = wait_for(client, handle.task, quiet=as_json) if wait else handle.task
    write_answer(task, as_json=as_json)
    if wait and task.status != "succeeded":
        raise typer.Exit(1)


def _check_use(type_: str | None, payload: str | None, lines: str | None, *, wait: bool, validate_only: bool) -> None:
    """Raises BadParameter for options that do not go together."""
    if type_ is None and lines is None:
        raise typer.BadParameter("expected a task type, or --from", param_hint="TYPE")
    if lines is not None and (payload is not None or wait):
        raise typer.BadParameter("it does not go with --payload or --wait", param_hint="--from")
    if wait and validate_only:
        raise typer.BadParameter("a task that is not submitted has no end to wait for", param_hint="--validate-only")


def wait_for(client: Client, task: Task, *, quiet: bool) -> Task:
    """Follow a task live to its end, with its status and progress shown to people on standard error."""
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console(err=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        line = bar.add_task(_line(task.type, task.status), total=None)
        for event in client.follow(task.id):
            _show_on(bar, line, task.type, event)
    return client.get(task.id)


def _show_on(bar: Progress, line: TaskID, type_: str, event: Event) -> None:
    status = event.task.status if event.task else event.type.removeprefix("task.")
    said = event.data if event.type == "task.progress" else {}
    fraction = said.get("fraction")
    done = float(fraction) if isinstance(fraction, int | float) else None
    bar.update(line, description=_line(type_, status, said.get("message")), total=None if done is None else 1.0, completed=done or 0.0)


def _line(type_: str, status: str, message: object = None) -> str:
    # What a handler said must neither drive the terminal nor be taken for Rich's markup.
    return escape_controls(f"{type_} {status}  {message or ''}").replace("[", r"\[")


def write_answer(answer: Answer, *, as_json: bool) -> None:
    """Write a task, or what else the service answered."""
    shown = answer.model_dump(mode="json")
    if as_json:
        write_json(shown)
        return
    error = shown.get("error")
    trace = error.pop("traceback", None) if isinstance(error, dict) else None
    write_pairs((name.replace("_", " "), _legible(name, value, shown)) for name, value in shown.items() if name != "version")
    if isinstance(trace, str):
        write_lines("traceback", trace)


def _legible(name: str, value: Any, task: dict[str, Any]) -> Any:
    """A field for people. Payloads and results are JSON, also where they are empty: a task that succeeded has a result, be it null."""
    if name == "payload" or (name == "result" and task.get("status") == "succeeded"):
        return json_text(value)
    return value


def _payload_text(given: str) -> str:
    try:
        if given in ("-", "@-"):
            return sys.stdin.read()
        return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"can't read {given.removeprefix('@')}: {error}", param_hint="--payload") from error


def _json(option: str, given: str) -> Any:
    try:
        return read_json(given)
    except ValueError as error:
        raise typer.BadParameter(f"not valid JSON: {error}", param_hint=option) from error
