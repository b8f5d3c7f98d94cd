"""The database's schema: bring it up, take it back, see where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from alembic import command
from alembic.util import CommandError

from taskyard import logs
from taskyard.database import postgres_url
from taskyard.database_check import check_database
from taskyard.database_errors import NO_RIGHTS, outages_named, sqlstate_of
from taskyard.errors import ConfigurationError, Unavailable
from taskyard.masking import secrets_in
from taskyard.settings import load_settings
from taskyard_migrations import runner
from taskyard_migrations.limits import LOCK_TIMEOUT, STATEMENT_TIMEOUT

_ADVICE = {
    NO_RIGHTS: "The user of DATABASE_URL needs the right to create tables (GRANT CREATE ON SCHEMA public TO ...), and has to own Taskyard's.",
    "3F000": "The search_path names no schema that is there: CREATE SCHEMA ... first.",
    "42P07": "It is not from Taskyard's migrations: rename it, or give Taskyard a database of its own.",
}

db = typer.Typer(name="db", help=__doc__, no_args_is_help=True)

LockTimeout = Annotated[str, typer.Option(help="How long to wait for a lock that others hold, such as 5s; 0 for ever.")]
StatementTimeout = Annotated[str, typer.Option(help="How long one statement may take, such as 60s; 0 for ever.")]


def _url() -> str:
    """The settings' database. Starts logging, so that Alembic says what it does. Raises ConfigurationError."""
    settings = load_settings()
    logs.configure(settings.log)
    logs.hide(secrets_in(settings))
    postgres_url(settings.database)
    # An upgrader's lock belongs to its session.
    check_database(settings.database)
    assert settings.database.url is not None, "an unset URL is refused"
    return settings.database.url.get_secret_value()


@contextmanager
def _mistakes_named(url: str) -> Iterator[None]:
    """The database's errors, and Alembic's own (an unknown revision, say), as ours, which the command line prints as a sentence."""
    try:
        with outages_named(at=runner.shown(url)):
            yield
    except CommandError as error:
        raise ConfigurationError(str(error)) from error
    except Unavailable as error:
        advice = _ADVICE.get(sqlstate_of(error) or "")
        if advice is None:
            raise
        raise Unavailable(f"{str(error).rstrip('.')}. {advice}") from error


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go to, or +N.")] = "head",
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    statement_timeout: StatementTimeout = STATEMENT_TIMEOUT,
) -> None:
    """Bring the schema up to the newest revision, or to one that you name."""
    url = _url()
    with _mistakes_named(url):
        runner.upgrade(url, revision, lock_timeout=lock_timeout, statement_timeout=statement_timeout)


# Without it, Typer would take the -1 of `downgrade -1` for an option.
@db.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go back to: its id, -N, or base for an empty schema.")],
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    statement_timeout: StatementTimeout = STATEMENT_TIMEOUT,
) -> None:
    """Take the schema back. What is dropped is gone with its data. Start the roles of the older version first: they work on both."""
    url = _url()
    with _mistakes_named(url):
        if connected := runner.connected_roles(url):
            typer.echo(
                f"Connected to this database: {', '.join(connected)}. Those of a version that needs the newer schema wait until it is back, and lose nothing; "
                "those of the older version go on.",
                err=True,
            )
        runner.downgrade(url, revision, lock_timeout=lock_timeout, statement_timeout=statement_timeout)


@db.command()
def current() -> None:
    """Print the revision that the database is at, and the newest. Exit with 1 if it has no schema of Taskyard's."""
    url = _url()
    with _mistakes_named(url):
        at = runner.current(url)
    newest = runner.head()
    told = "newest" if at == newest else f"newer than {newest}, the newest that this version knows" if runner.is_newer(at) else f"newest is {newest}"
    typer.echo(f"{at or 'no schema'} ({told})")
    if at is None:
        raise typer.Exit(1)


@db.command()
def revision(
    message: Annotated[str, typer.Option("--message", "-m", help="What the revision does, in a few words.")],
    autogenerate: Annotated[bool, typer.Option(help="Fill it with what the tables have and the database lacks.")] = False,
) -> None:
    """Make a new revision file (for developers of Taskyard)."""
    url = _url()
    with _mistakes_named(url):
        command.revision(runner.config(url), message, autogenerate=autogenerate, rev_id=runner.next_id())
