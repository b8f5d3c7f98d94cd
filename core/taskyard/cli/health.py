"""Is a role of this host at work? For container health checks, which ask every few seconds."""

from __future__ import annotations

import http.client
import socket
import urllib.error
from collections.abc import Callable
from typing import Annotated

import psycopg
import typer

from taskyard import workers
from taskyard.cli.database import HERE, RunningDataDir, with_embedded
from taskyard.database import APPLICATION, connect, sync_engine
from taskyard.database_errors import outages_named
from taskyard.dispatchers import longest_silence
from taskyard.errors import TaskyardError, Unavailable
from taskyard.network import open_directly, own_url
from taskyard.settings import Settings, load_settings
from taskyard.spelling import did_you_mean

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


@app.command()
def web() -> None:
    """The service answers on its port, and its database and schema are usable."""
    settings = load_settings()
    url = f"{own_url(settings.api.host, settings.api.port)}/health/ready"
    try:
        with open_directly(url, timeout=SECONDS_TO_ANSWER):  # our own http:// address
            return
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{url} answered {error.code}: {error.read(2000).decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url} does not answer: {error}") from error


@app.command()
def dispatcher(data_dir: RunningDataDir = HERE) -> None:
    """A dispatcher at this address used the database a moment ago, and one of this host reaches the broker."""
    settings = with_embedded(load_settings(), data_dir)
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
def worker(
    name: Annotated[
        str | None, typer.Option(help="This worker alone, by its name (w1, or w1@ops), wherever it runs. Default: all workers of this host.")
    ] = None,
    data_dir: RunningDataDir = HERE,
) -> None:
    """Workers of this host beat within ``dispatch.worker_silence``, and each of them progresses.

    One does not that claims and ends nothing for long although tasks wait for its free slots: only a restart helps it.
    """
    settings = with_embedded(load_settings(), data_dir)
    host = socket.gethostname()
    engine = sync_engine(settings.database, role="health", pool_size=1)
    try:
        with outages_named(engine.url), engine.connect() as connection:
            live = workers.live(connection, settings)
    finally:
        engine.dispose()
    found = [one for one in live if (one.host == host if name is None else one.name in (name, f"{name}@{host}"))]
    if not found:
        whose = f"worker of {host}" if name is None else f"worker named {name}" + ("" if "@" in name else f" or {name}@{host}")
        raise TaskyardError(f"No {whose} beat within {settings.dispatch.worker_silence:g} s.{_nearest(name, live)}")
    if stuck := [one for one in found if one.stuck]:
        names = ", ".join(f"{one.name} for {one.idle:.0f} s" for one in stuck)
        raise TaskyardError(f"Claimed and ended nothing, although tasks wait for free slots: {names}. Restart it, and look into its log.")


def _nearest(name: str | None, live: list[workers.LiveWorker]) -> str:
    return did_you_mean(name, [word for one in live for word in (one.name, one.name.partition("@")[0])]) if name else ""


def _require(settings: Settings, ask: Callable[[psycopg.Connection], psycopg.Cursor], otherwise: str) -> None:
    """Raise ``otherwise`` unless the query counts at least one."""
    try:
        with connect(settings.database, role="health") as connection:
            row = ask(connection).fetchone()
    except psycopg.Error as error:
        raise Unavailable(f"The database can't be asked now: {error}") from error
    if row is None or row[0] == 0:
        raise TaskyardError(otherwise)
