"""What commands print: tables and colour for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskyard import logs
from taskyard.masking import escape_controls
from taskyard.settings import LogSettings

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]

STYLES = {
    "delivered": "green",
    "dead": "red",
    "succeeded": "green",
    "enabled": "green",
    "running": "cyan",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "held": "yellow",
    "scheduled": "dim",
    "disabled": "dim",
}


def console(*, err: bool = False) -> Console:
    """A console as wide as the terminal; piped, wider than any line, so that nothing is cut or folded."""
    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else 10_000, highlight=False)


def write_json(data: Any, *, indent: int | None = 2) -> None:
    """Write JSON to standard output, in ASCII: it survives every locale and drives no terminal."""
    sys.stdout.write(json.dumps(data, indent=indent, default=str) + "\n")
    sys.stdout.flush()


def text(value: Any) -> Text:
    """A cell. Control characters are escaped: what a client submitted must not drive an operator's terminal."""
    shown = _words(value)
    return Text(escape_controls(shown), style=STYLES.get(shown, ""))


def _words(value: Any) -> str:
    """A value for people: words as they are, several of them with commas, and all that has a structure as JSON."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json_text(value) if isinstance(value, dict | list | tuple | bool) else "" if value is None else str(value)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON, on one line where there is no ``indent``."""
    return json.dumps(value, ensure_ascii=False, default=str, indent=indent)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, fold: Collection[str] = ()) -> None:
    """Write a plain table to standard output. On a narrow terminal the ``fold`` columns give way."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in fold, overflow="fold")
    for row in rows:
        table.add_row(*(text(value) for value in row))
    _print(table)


def _print(table: Table) -> None:
    """Print a table without the blanks that fill its last column up to the longest line."""
    shown = console()
    with shown.capture() as captured:
        shown.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def write_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Write names and values below each other, leaving out what is empty."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        # Not among those of the tuple: 0 is equal to False.
        if value is not False and value not in (None, "", [], {}):
            table.add_row(name, text(value))
    _print(table)


def say(message: str) -> None:
    """Tell people something beside the output, on standard error."""
    console(err=True).print(text(message))


def say_lines(message: str, *, first: str = "") -> None:
    """:func:`say` for a text of several lines, such as a traceback: each but the first is indented."""
    head, *rest = message.splitlines()
    say(first + head)
    for line in rest:
        say(f"    {line}")


def write_lines(heading: str, lines: str) -> None:
    """Write a text of several lines to standard output, such as a traceback, indented below its heading. Control characters are escaped."""
    shown = console()
    shown.print(Text(heading, style="bold"))
    for line in lines.splitlines():
        shown.print(text(f"  {line}"))


def local_time(stamp: str | datetime | None) -> str:
    """A time (as text in RFC 3339) in the local zone, to the second: RFC 3339 again, so that the options of other commands take it."""
    when = datetime.fromisoformat(stamp) if isinstance(stamp, str) else stamp
    return when.astimezone().isoformat(timespec="seconds") if when else ""


def keep_plugins_quiet() -> None:
    """Let the plugin host log nothing: what it would say of a failed plugin is part of the command's answer."""
    logs.configure(LogSettings(level="error"))
    logging.getLogger("taskyard.plugins").disabled = True
