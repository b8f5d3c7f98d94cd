"""Look at tasks, and move them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taskyard.cli.output import AsJson, console, local_time, say, text, write_json, write_table
from taskyard.cli.rest import DEFAULT_URL, Key, Service, Url
from taskyard.cli.submit import show_task

app = typer.Typer(help="Look at tasks, and move them.", no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(help="Task ids; or none, and a filter.", metavar="[ID]...")]
Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", help="All tasks with this, such as status=failed or tag=nightly, instead of ids; repeat for more.", metavar="NAME=VALUE"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --filter: count what it finds, and change nothing.")]
Id = Annotated[str, typer.Argument(help="Task id.", metavar="ID")]
Many = list[str] | None
WAITING = ("scheduled", "pending", "queued")


@app.command("list")
def list_(
    status: Annotated[Many, typer.Option(help="Only this status; repeat for more.")] = None,
    type: Annotated[Many, typer.Option(help="Only this type; repeat for more.")] = None,
    queue: Annotated[Many, typer.Option(help="Only this queue; repeat for more.")] = None,
    tag: Annotated[Many, typer.Option(help="Only with this tag; repeat for more.")] = None,
    priority: Annotated[int | None, typer.Option(help="Only this priority.")] = None,
    created_after: Annotated[str | None, typer.Option(help="Only created after this time (RFC 3339).")] = None,
    created_before: Annotated[str | None, typer.Option(help="Only created before this time (RFC 3339).")] = None,
    q: Annotated[str | None, typer.Option("--query", "-q", help="First letters of an id, type or tag.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only those that this task's handler submitted.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Tasks at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where a list ended.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    given = {"status": status, "type": type, "queue": queue, "tag": tag, "priority": priority, "q": q, "limit": limit, "cursor": cursor}
    given |= {"created_after": created_after, "created_before": created_before, "parent_id": parent}
    with Service(url, key) as service:
        page = service.call("GET", "tasks", params={name: value for name, value in given.items() if value is not None})
    if as_json:
        write_json(page)
        return
    write_table(("ID", "TYPE", "STATUS", "QUEUE", "PRIO", "CREATED"), [_row(task) for task in page["items"]], fold=("TYPE", "QUEUE", "CREATED"))
    if page.get("next_cursor"):
        say(f"There are more: --cursor {page['next_cursor']}")


def _row(task: dict[str, Any]) -> tuple[Any, ...]:
    return task["id"], task["type"], task["status"], task["queue"], task["priority"], local_time(task["created_at"])


@app.command()
def show(id: Id, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Show one task and its history."""
    with Service(url, key) as service:
        task = service.call("GET", "tasks", id)
        events, _ = service.events(id)
    if as_json:
        write_json(task | {"events": events})
        return
    show_task(task, as_json=False)
    if position := task.get("position"):
        start = local_time(task["estimated_start"]) if task["estimated_start"] else "unknown"
        say(f"In line: {position}. Estimated start: {start}.")
    console().print()
    write_table(("TIME", "EVENT", "ATTEMPT", "DATA"), [_event_row(event) for event in events], fold=("DATA",))


def _event_row(event: dict[str, Any]) -> tuple[Any, ...]:
    return local_time(event["time"]), event["type"], event["attempt"], event.get("data") or ""


@app.command()
def watch(id: Id, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Show a task's events as they happen, until its end; exit with 1 unless it succeeded."""
    seen: set[str] = set()
    status, cursor = "", None
    with Service(url, key) as service:
        for task in service.follow(id):
            status = task["status"]
            events, cursor = service.events(id, cursor)
            for event in events:
                if event["id"] not in seen:
                    _show_event(event, as_json=as_json)
            seen = {event["id"] for event in events}
    if status != "succeeded":
        raise typer.Exit(1)


def _show_event(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(event, indent=None)
    else:
        console().print(text("  ".join(str(part) for part in _event_row(event))))


def _move(verb: str, ids: list[str] | None, filters: list[str] | None, url: str, key: str, *, dry_run: bool, as_json: bool) -> None:
    if bool(ids) == bool(filters):
        raise typer.BadParameter("expected task ids, or --filter, and not both", param_hint="ID")
    if dry_run and not filters:
        raise typer.BadParameter("it goes with --filter", param_hint="--dry-run")
    with Service(url, key) as service:
        if filters:
            done = service.call("POST", "tasks", "actions", body={"action": verb, "filter": _filter(filters), "dry_run": dry_run}, timeout=None)
            write_json(done) if as_json else say(f"{done['matched']} found, {done['changed']} changed.")
            return
        moved = [service.call("POST", "tasks", id_, verb) for id_ in ids or ()]
    if as_json:
        write_json({"items": moved})
    else:
        write_table(("ID", "TYPE", "STATUS"), [(task["id"], task["type"], "asked to stop" if _stopping(task) else task["status"]) for task in moved])


def _filter(given: list[str]) -> dict[str, Any]:
    """Words as the service's filter. What is wrong with a name or a value is the service's to say."""
    found: dict[str, Any] = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"{word!r}: expected a name and a value, such as status=failed", param_hint="--filter")
        if name in ("status", "type", "queue", "tag"):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise typer.BadParameter(f"{name} can be given once", param_hint="--filter")
        else:
            found[name] = int(value) if name == "priority" and value.isdecimal() else value
    return found


def _stopping(task: dict[str, Any]) -> bool:
    return task["status"] == "running" and bool(task.get("cancel_requested"))


@app.command()
def cancel(ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Cancel tasks; a running one is asked to stop."""
    _move("cancel", ids, filter, url, key, dry_run=dry_run, as_json=as_json)


@app.command()
def retry(ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Run tasks again that failed, were cancelled or expired."""
    _move("retry", ids, filter, url, key, dry_run=dry_run, as_json=as_json)


@app.command()
def hold(ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Take tasks out of line."""
    _move("hold", ids, filter, url, key, dry_run=dry_run, as_json=as_json)


@app.command()
def release(ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Put held tasks back in line."""
    _move("release", ids, filter, url, key, dry_run=dry_run, as_json=as_json)
