"""Look at notifiers and routes, try them, and send past events to one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import PydanticCustomError

from taskyard import durations
from taskyard.cli.database import HERE, DataDir, opened
from taskyard.cli.output import AsJson, say, write_json, write_table
from taskyard.cli.rest import Key, ProfileName, Url, connect
from taskyard.cli.trial import send_test
from taskyard.validation import parse_instant

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(help="Look at notifiers and routes, try them, and send past events to one.", no_args_is_help=True)
app.command("test")(send_test)
#: Seconds between two lines about a replay that goes on.
TELL_EVERY = 2.0


def _moment(text: str) -> datetime:
    """A time, or how long ago it was."""
    try:
        return datetime.now(UTC) - durations.parse(text)
    except ValueError:
        try:
            return parse_instant(text)
        except PydanticCustomError as error:
            raise typer.BadParameter(f"{text!r}: {error.message()}; or how long ago, such as 24h") from error


@app.command("list")
def list_(url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False) -> None:
    """List the notifiers that are installed, and the routes that use them."""
    with connect(url, key, profile) as service:
        found = service.call("GET", "notifiers")
    if as_json:
        write_json(found)
        return
    rows = [
        (notifier["name"], notifier["plugin"], notifier["description"], [_route(state) for state in notifier["route_states"]]) for notifier in found["items"]
    ]
    write_table(("NAME", "PLUGIN", "DESCRIPTION", "ROUTES"), rows, fold=("DESCRIPTION", "ROUTES"))


def _route(state: dict[str, str]) -> str:
    return state["name"] if state["state"] == "enabled" else f"{state['name']} ({state['state']}{': ' + state['reason'] if state['reason'] else ''})"


@app.command()
def enable(route: Annotated[str, typer.Argument(help="The route's name.", metavar="ROUTE")], data_dir: DataDir = HERE) -> None:
    """Switch a route on again whose receiver answered that it wants no more. What died meanwhile: `taskyard deliveries redeliver`."""
    from taskyard import audit, routes  # Here, not above: the other commands need no database.
    from taskyard.retrying import transaction

    def switch_on(connection: Connection) -> bool:
        was_off = routes.enable(connection, route)
        if was_off:
            audit.record(connection, audit.Actor.at_command_line(), "route.enable", route)
        return was_off

    with opened(data_dir, "enable") as engine:
        was_off = transaction(engine, switch_on)
    say(f"The route {route!r} is on again." if was_off else f"The route {route!r} was on already.")


@app.command()
def replay(
    route: Annotated[str, typer.Option(help="The route that gets them. A dispatcher must have started with it.")],
    since: Annotated[datetime, typer.Option(parser=_moment, metavar="TIME", help="Events from then on: a time (RFC 3339), or how long ago, such as 24h.")],
    until: Annotated[datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Events before then. Default: now.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and send nothing.")] = False,
    data_dir: DataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """Send past events from the history to a route.

    Events that the route has a delivery of already are left out: it can be cut off, and run again.
    """
    from taskyard import audit, routes  # Here, not above: the other commands need no database.
    from taskyard.replay import Progress, replay
    from taskyard.retrying import transaction

    def record(connection: Connection) -> None:
        routes.known(connection, route)
        asked = f"{route}: events from {since.isoformat()} to {until.isoformat() if until else 'now'}"
        audit.record(connection, audit.Actor.at_command_line(), "route.replay", asked)

    done, told = Progress(0, 0, 1.0), time.monotonic()
    with opened(data_dir, "replay") as engine:
        if not dry_run:
            transaction(engine, record)
        for done in replay(engine, route, since, until or datetime.now(UTC), dry_run=dry_run):
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                say(f"{done.fraction:.0%}: {done.read:,} events read, {done.sent:,} for the route.")
    if as_json:
        write_json({"read": done.read, "sent": 0 if dry_run else done.sent, "wanted": done.sent})
    else:
        say(f"{done.read:,} events read; {done.sent:,} {'would go' if dry_run else 'go'} to the route {route!r}.")
