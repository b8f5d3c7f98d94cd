"""`taskyard submit --from`: a task on each line, submitted in batches that can be sent again without making a task twice."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import typer
from rich.progress import BarColumn, Progress, TextColumn

from taskyard.cli.output import console, say, write_json
from taskyard.client import Client, Problem, Task, TooLarge
from taskyard.errors import TaskyardError
from taskyard.storable import read_json

#: Tasks in one request, and bytes of their lines: the service takes 1,000 tasks and, by default, 1 MiB.
TASKS, BYTES = 1000, 512 * 1024
_PLACE = re.compile(r"/tasks/(\d+)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """A task, and where it is written."""

    number: int
    task: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """Lines that were submitted together, or only checked: then they have no tasks. ``replayed``: an earlier run had submitted them."""

    lines: Sequence[Line]
    tasks: Sequence[Task] = ()
    replayed: bool = False
    warning: str | None = None


class Refused(TaskyardError):
    """A line is wrong."""


@dataclass(slots=True)
class Done:
    """How far it is: the last line that is submitted, how many tasks these are, and how many of them an earlier run had made."""

    line: int = 0
    tasks: int = 0
    before: int = 0
    warnings: dict[str, None] = field(default_factory=dict)

    def add(self, sent: Sent) -> None:
        """Count what was submitted together."""
        self.line = sent.lines[-1].number
        self.tasks += len(sent.lines)
        self.before += len(sent.lines) if sent.replayed else 0
        self.warnings |= {} if sent.warning is None else {sent.warning: None}

    def sentence(self) -> str:
        """It, for people."""
        again = f", {self.before} of them by an earlier run" if self.before else ""
        return f"{_counted(self.tasks)} submitted{again}."


def submit_lines(client: Client, given: str, defaults: Mapping[str, Any], key: str, *, validate_only: bool, as_json: bool) -> None:
    """Submit the tasks of a file, or (``-``) of standard input. ``defaults`` are for lines that do not say.

    A batch's Idempotency-Key is made of ``key`` and of what it holds: the same lines with the same key are submitted once.

    Raises:
        Refused: a line is wrong; says which, and what was submitted before it.
        ClientError: the service can't be reached, or refuses for another reason. What was submitted is said.
    """
    done = Done()
    with ExitStack() as held:
        lines = _lines(held.enter_context(_opened(given)), defaults)
        bar = held.enter_context(_progress(hidden=as_json))
        shown = bar.add_task("checked" if validate_only else "submitted", total=None)
        try:
            for batch in _batches(lines):
                for sent in _send(client, batch, key, validate_only=validate_only):
                    done.add(sent)
                    bar.update(shown, completed=done.tasks)
                    if as_json:
                        _write(sent)
        except Exception:
            held.close()
            if not validate_only:
                say(f"{done.sentence()} They are up to line {done.line}; nothing after it is." if done.tasks else "Nothing is submitted.")
                say("Run the same command again, once that is mended: no task is made twice.")
            raise
    for warning in done.warnings:
        say(f"Warning: {warning}.")
    say(f"{_counted(done.tasks)} right; nothing is submitted." if validate_only else done.sentence())


def _counted(tasks: int) -> str:
    return "1 task is" if tasks == 1 else f"{tasks} tasks are"


def _opened(given: str) -> BinaryIO:
    try:
        return sys.stdin.buffer if given == "-" else Path(given).open("rb")
    except OSError as error:
        raise typer.BadParameter(f"can't read {given}: {error}", param_hint="--from") from error


def _progress(*, hidden: bool) -> Progress:
    columns = (TextColumn("{task.completed} {task.description}"), BarColumn())
    return Progress(*columns, console=console(err=True), transient=True, disable=hidden or not sys.stderr.isatty())


def _lines(file: Iterable[bytes], defaults: Mapping[str, Any]) -> Iterator[tuple[Line, int]]:
    """Each task, and the bytes of its line. Empty lines are none."""
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            task = read_json(text) if text else None
        except ValueError as error:
            raise Refused(f"Line {number} is not JSON that can be sent: {error}") from error
        if not text:
            continue
        if not isinstance(task, dict):
            raise Refused(f'Line {number} is no task: expected an object such as {{"type": "demo.echo", "payload": {{"text": "x"}}}}.')
        yield Line(number, {**defaults, **task}), len(raw)


def _batches(lines: Iterable[tuple[Line, int]]) -> Iterator[list[Line]]:
    """Lines together, as many as one request takes. Where one ends depends on the lines before it alone: an earlier run has cut them alike."""
    batch: list[Line] = []
    size = 0
    for line, length in lines:
        if batch and (len(batch) == TASKS or size + length > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += length
    if batch:
        yield batch


def _send(client: Client, batch: Sequence[Line], key: str, *, validate_only: bool) -> Iterator[Sent]:
    """Submit a batch, or its halves where it is too large for this service."""
    tasks = [dict(line.task) for line in batch]
    try:
        if validate_only:
            client.call("POST", "tasks", "batch", body={"tasks": tasks}, params={"validate_only": "true"})
            yield Sent(batch)
            return
        handles = client.batch(tasks, idempotency_key=_key(key, batch))
        yield Sent(batch, [handle.task for handle in handles], handles[0].replayed, handles[0].warning)
    except TooLarge as error:
        if len(batch) == 1:
            raise Refused(f"Line {batch[0].number} is too large for the service: {error}") from error
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            yield from _send(client, half, key, validate_only=validate_only)
    except Problem as error:
        if wrong := _places(error, batch):
            raise Refused(f"{error.title}:\n{wrong}") from error
        raise


def _key(key: str, batch: Sequence[Line]) -> str:
    """Of what is sent, and where it stands: the same line may be there twice, and mean two tasks."""
    told = json.dumps([key, [[line.number, line.task] for line in batch]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _places(error: Problem, batch: Sequence[Line]) -> str:
    """The places of a refusal by the lines that they are in."""
    found = ((_PLACE.fullmatch(place.pointer), place.detail) for place in error.errors)
    return "\n".join(f"  line {batch[int(at[1])].number}: {at[2]}: {detail}" for at, detail in found if at and int(at[1]) < len(batch))


def _write(sent: Sent) -> None:
    # Of lines that were only checked there are no tasks.
    for line, task in zip(sent.lines, sent.tasks, strict=False):
        write_json({"line": line.number, **task.model_dump(mode="json", include={"id", "type", "status", "queue"})}, indent=None)
