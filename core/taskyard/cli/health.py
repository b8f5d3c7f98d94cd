"""Is a role of this host at work? For container health checks, which ask every few seconds."""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Callable

import psycopg
import typer

from taskyard.database import APPLICATION, connect
from taskyard.dispatchers import longest_silence
from taskyard.errors import TaskyardError, Unavailable
from taskyard.network import open_directly
from taskyard.settings import Settings, load_settings

app = typer.Typer(help="Exit with 0 if a role of this host is at work, with 1 if not: for health checks.", no_args_is_help=True)

SECONDS_TO_ANSWER = 5.0

# The dispatcher keeps no row of its own. Its connections tell when they were last used, and where they come from.
_DISPATCHER = """
SELECT count(*) FROM pg_stat_activity a JOIN pg_stat_activity me ON me.pid = pg_backend_pid()
WHERE a.application_name = %(name)s AND a.datname = current_database() AND a.client_addr IS NOT DISTINCT FROM me.client_addr
  AND a.state_change > now() - %(pause)s * interval '1 second'
"""
# Of the version before, a dispatcher keeps no row: then nobody knows, and that counts as well.
_BROKER = """
SELECT count(*) = 0 OR bool_or(broker_error IS NULL) FROM dispatchers WHERE host = %(host)s AND beat_at > now() - %(pause)s * interval '1 second'
"""
_WORKER = """
SELECT count(*) FROM workers WHERE split_part(name, '@', 2) = %(host)s AND beat_at > now() - %(silence)s * interval '1 second'
"""


@app.command()
def web() -> None:
    """The service answers on its port, and its database and schema are usable."""
    settings = load_settings()
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # told apart, not bound
    host = wildcard.get(settings.api.host, settings.api.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.api.port}/health/ready"
    try:
        with open_directly(url, timeout=SECONDS_TO_ANSWER):  # our own http:// address
            return
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{url} answered {error.code}: {error.read(2000).decode(errors='replace')}") from error
    except OSError as error:
        raise Unavailable(f"{url} does not answer: {error}") from error


@app.command()
def dispatcher() -> None:
    """A dispatcher at this address used the database a moment ago, and one of this host reaches the broker."""
    settings = load_settings()
    pause = longest_silence(settings)
    _require(
        settings, lambda c: c.execute(_DISPATCHER, {"name": f"{APPLICATION}-dispatcher", "pause": pause}), "No dispatcher at this address uses the database."
    )
    host = socket.gethostname()
    _require(
        settings,
        lambda c: c.execute(_BROKER, {"host": host, "pause": pause}),
        f"No dispatcher of {host} reaches the broker; `taskyard doctor` and the dispatcher's log say why.",
    )


@app.command()
def worker() -> None:
    """A worker of this host beat its heart within ``dispatch.worker_silence``."""
    settings = load_settings()
    host = socket.gethostname()
    values = {"host": host, "silence": settings.dispatch.worker_silence}
    _require(settings, lambda c: c.execute(_WORKER, values), f"No worker named ...@{host} beats its heart.")


def _require(settings: Settings, ask: Callable[[psycopg.Connection], psycopg.Cursor], otherwise: str) -> None:
    """Raise ``otherwise`` unless the query counts at least one."""
    try:
        with connect(settings.database, role="health") as connection:
            row = ask(connection).fetchone()
    except psycopg.Error as error:
        raise Unavailable(f"The database can't be asked now: {error}") from error
    if row is None or row[0] == 0:
        raise TaskyardError(otherwise)
