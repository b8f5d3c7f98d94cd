"""Make access keys, and end them. Speaks to the database and not to the service: the first key can't be asked for with a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from taskyard import audit, durations, keys
from taskyard.audit import Actor
from taskyard.cli.database import HERE, DataDir, opened
from taskyard.cli.output import AsJson, local_time, say, write_json, write_pairs, write_table
from taskyard.keys import NewKey

app = typer.Typer(help="Make access keys, and end them.", no_args_is_help=True)


def _span(text: str) -> timedelta:
    try:
        return durations.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _scopes(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


Namespace = Annotated[str, typer.Option(help="The namespace that the key is bound to.")]
Which = Annotated[str, typer.Argument(help="The key's name, or its id.", metavar="KEY")]
Expires = Annotated[timedelta | None, typer.Option(parser=_span, metavar="SPAN", help="When it ends, such as 90d. Default: never.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called, in lists and logs.")],
    namespace: Namespace = "default",
    scopes: Annotated[str, typer.Option(help=f"What it may do, comma separated: {', '.join(keys.SCOPES)}.")] = "tasks:read,tasks:write",
    expires: Expires = None,
    data_dir: DataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """Make a key, and show it: once, now, and never again."""
    with _database(data_dir) as connection:
        made = keys.create(connection, name, namespace=namespace, scopes=_scopes(scopes), lasts=expires)
        _record(connection, "key.create", made.row)
    _show_new(made, as_json=as_json)


@app.command("list")
def list_(
    namespace: Annotated[str | None, typer.Option(help="Only this namespace.")] = None,
    data_dir: DataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """List keys, dead ones too. The keys themselves are not kept, and can't be shown."""
    with _database(data_dir) as connection:
        rows = keys.listed(connection, namespace)
    if as_json:
        write_json({"items": [_plain(row) | {"state": _state(row)} for row in rows]})
        return
    columns = ("ID", "NAME", "NAMESPACE", "SCOPES", "STATE", "CREATED", "EXPIRES", "LAST USED")
    write_table(columns, [_row(row) for row in rows], fold=("NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED"))


@app.command()
def rotate(
    which: Which,
    overlap: Annotated[timedelta, typer.Option(parser=_span, metavar="SPAN", help="How long the old key works beside the new one.")] = "24h",  # type: ignore[assignment]  # typer parses its defaults
    expires: Expires = None,
    namespace: Namespace = "default",
    data_dir: DataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """Make another key like this one. The old one ends after the overlap."""
    with _database(data_dir) as connection:
        made = keys.rotate(connection, which, overlap=overlap, lasts=expires, namespace=namespace)
        _record(connection, "key.rotate", made.row)
    _show_new(made, as_json=as_json)


@app.command()
def revoke(which: Which, namespace: Namespace = "default", data_dir: DataDir = HERE, as_json: AsJson = False) -> None:
    """End a key. Services take note within five seconds."""
    with _database(data_dir) as connection:
        row = keys.revoke(connection, which, namespace=namespace)
        _record(connection, "key.revoke", row)
    if as_json:
        write_json(_plain(row))
    else:
        say(f"The key {row.name!r} ({row.id}) of {row.namespace!r} is revoked.")


@app.command("audit")
def show_audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries at most.")] = 100,
    data_dir: DataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, by which key and from where, newest first: keys, tasks, queues, deliveries, routes. Submissions are in the tasks' own history."""
    with _database(data_dir) as connection:
        rows = audit.entries(connection, limit)
    if as_json:
        write_json({"items": [_plain(row) for row in rows]})
        return
    entries = [(_time(row.time), _who(row), row.namespace, row.address, row.verb, row.target) for row in rows]
    write_table(("TIME", "KEY", "NAMESPACE", "FROM", "VERB", "TARGET"), entries, fold=("KEY", "FROM", "TARGET"))


def _who(entry: Any) -> str:
    return f"{entry.key_name} ({entry.key_id})" if entry.key_id else "no key"


# --- what they share ----------------------------------------------------------------------------------------------------


@contextmanager
def _database(data_dir: Path) -> Iterator[Connection]:
    with opened(data_dir, "keys") as engine, engine.begin() as connection:
        yield connection


def _record(connection: Connection, verb: str, key: Any) -> None:
    target = f"{key.name} ({key.id}) of {key.namespace}: {', '.join(key.scopes)}"
    audit.record(connection, Actor.at_command_line(), verb, target)


def _show_new(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        write_json({"key": made.secret} | _plain(made.row))
        return
    row = made.row
    write_pairs(
        [("key", made.secret), ("id", row.id), ("name", row.name), ("namespace", row.namespace), ("scopes", row.scopes), ("expires", _time(row.expires_at))]
    )
    say("Keep it now: it is not stored, and can't be shown again. Send it as `Authorization: Bearer ty_...`, or set TASKYARD_KEY for this command line.")


def _row(row: Any) -> tuple[Any, ...]:
    return row.id, row.name, row.namespace, row.scopes, _state(row), _time(row.created_at), _time(row.expires_at), _time(row.last_used_at)


def _state(row: Any) -> str:
    return "live" if row.live else "revoked" if row.revoked_at else "expired"


def _time(moment: Any) -> str:
    return local_time(moment.isoformat()) if moment else ""


def _plain(row: Any) -> dict[str, Any]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row._mapping.items() if name != "live"}
