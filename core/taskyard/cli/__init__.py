"""The `taskyard` command. Each sub-command is loaded when it is called, so that one never waits for another's imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from taskyard.errors import TaskyardError

GROUP = "taskyard.commands"
#: Core's own commands; the other rooms' are found by entry point.
CORE = {
    "up": "taskyard.up.command:up",
    "submit": "taskyard.cli.submit:submit",
    "tasks": "taskyard.cli.tasks:app",
    "task-types": "taskyard.cli.task_types:app",
    "queues": "taskyard.cli.queues:app",
    "deliveries": "taskyard.cli.deliveries:app",
    "notifiers": "taskyard.cli.notifiers:app",
    "keys": "taskyard.cli.keys:app",
    "plugins": "taskyard.cli.plugins:app",
    "config": "taskyard.cli.config:app",
    "health": "taskyard.cli.health:app",
    "doctor": "taskyard.cli.doctor:doctor",
}
#: What brings a command's modules, where the bare distribution has not all of them.
EXTRAS = {
    "serve": "api",
    "worker": "worker",
    "dispatcher": "worker",
    "up": "standard",
    "db": "server",
    "keys": "server",
    "health": "server",
    "doctor": "worker",
    "config": "server",
}
#: Commands that serve; the others answer whoever calls them.
ROLES = ("serve", "dispatcher", "worker", "up")


class Commands(TyperGroup):
    """The commands by name. Listing them imports none; calling one imports that one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.targets = CORE | {entry.name: entry.value for entry in sorted(_entry_points()) if entry.name not in CORE}
        self.commands = {name: TyperCommand(name) for name in self.targets}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = self.commands.get(cmd_name)
        if command:
            command.help = _read_help(self.targets[cmd_name])
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and _load(str(name), self.targets[str(name)]), rest


def _entry_points() -> Iterable[EntryPoint]:
    """The commands of the other rooms. Where a distribution's files can't be read, all others' are."""
    try:
        return entry_points(group=GROUP)
    except Exception:
        from taskyard.distributions import hide_unreadable  # Here, not above: it takes a while, and is hardly ever needed.

        problems = hide_unreadable()
        # A role logs them itself.
        if not set(sys.argv[1:2]) & set(ROLES):
            for problem in problems:
                typer.secho(problem, err=True, fg=typer.colors.YELLOW)
        return entry_points(group=GROUP)


def _load(name: str, target: str) -> Any:
    """The command itself: the target is a function or a typer.Typer."""
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


def _read_help(target: str) -> str:
    """A command's docstring, read from its source: importing it may take a second."""
    module, _, attribute = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.origin:
        return "Not installed; run it to see what it needs."
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == attribute)
    return ast.get_docstring(next(functions, tree)) or ""


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"taskyard {version('taskyard')}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    """Typed background tasks, kept in PostgreSQL, dispatched through Celery, done by plugins."""


def main() -> None:
    """Run the command line. Exit codes: 0 fine, 1 the thing failed, 2 wrong use."""
    _write_what_the_terminal_can_show()
    try:
        app(prog_name="taskyard")
    except TaskyardError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(_missing(error))
    except Exception as error:
        if not (sentence := _database_sentence(error)):
            raise
        _fail(sentence)


def _write_what_the_terminal_can_show() -> None:
    """Escape the characters that a Latin-1 or ASCII terminal lacks, instead of dying of the first."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str) -> None:
    # A role that can't start for its settings has no log yet; whoever reads JSON must understand its last word all the same.
    if sys.argv[1:2] and sys.argv[1] in ROLES and os.environ.get("TASKYARD_LOG__FORMAT") == "json":
        import structlog

        from taskyard import logs
        from taskyard.settings import LogSettings

        logs.configure(LogSettings(format="json"))
        structlog.get_logger(__name__).critical("role.failed", error=message)
    else:
        typer.secho(message, err=True, fg=typer.colors.RED)
    sys.exit(1)


def _database_sentence(error: Exception) -> str | None:
    """A database's error on one line; None if it is another's."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.exc import DBAPIError, PendingRollbackError

    from taskyard.database_errors import driver_words

    drivers = {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & {"psycopg", "asyncpg"}
    return f"The database refused this: {driver_words(error)}" if drivers or isinstance(error, DBAPIError | PendingRollbackError) else None


def _missing(error: ModuleNotFoundError) -> str:
    """Which extra brings the module that is not there."""
    module = (error.name or "").partition(".")[0]
    try:
        wanted = requires("taskyard") or []
    except PackageNotFoundError:
        wanted = []
    for requirement in wanted:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"""extra\s*==\s*['"]([\w-]+)""", requirement)
        if name and extra and name[0].lower().replace("-", "_") == module.lower():
            # What a module's own extra brings may not be all that the command needs.
            needed = EXTRAS.get(next((word for word in sys.argv[1:] if not word.startswith("-")), ""), extra[1])
            return f"This command needs the extra {needed!r}: pip install 'taskyard[{needed}]'"
    return f"This command needs the Python module {module!r}, which is not installed."
