"""Look at notifications, and send them again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taskyard.cli.output import AsJson, console, local_time, say, write_json, write_pairs, write_table
from taskyard.cli.rest import AllNamespaces, Key, Namespace, ProfileName, Url, connect, namespace_filter

app = typer.Typer(help="Look at notifications, and send them again.", no_args_is_help=True)

Many = list[str] | None
Statuses = Annotated[Many, typer.Option("--status", help="Only this status; repeat for more.")]
Routes = Annotated[Many, typer.Option("--route", help="Only this route; repeat for more.")]
Notifiers = Annotated[Many, typer.Option("--notifier", help="Only this notifier; repeat for more.")]
Events = Annotated[Many, typer.Option("--event", help="Only this type of event; repeat for more.")]
Task = Annotated[str | None, typer.Option("--task", help="Only of the task with this id.")]
After = Annotated[str | None, typer.Option("--created-after", help="Only created after this time (RFC 3339).")]
Before = Annotated[str | None, typer.Option("--created-before", help="Only created before this time (RFC 3339).")]
COLUMNS = ("ID", "EVENT", "ROUTE", "STATUS", "ATTEMPT", "CREATED", "LAST TRY")


@app.command("list")
def list_(
    status: Statuses = None,
    route: Routes = None,
    notifier: Notifiers = None,
    event: Events = None,
    task: Task = None,
    created_after: After = None,
    created_before: Before = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Deliveries at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where a list ended.")] = None,
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first, with the outcome of the last try."""
    chosen = _given(status=status, route=route, notifier=notifier, event=event, task_id=task, created_after=created_after, created_before=created_before)
    with connect(url, key, profile) as service:
        page = service.call("GET", "deliveries", params=chosen | namespace_filter(namespace, all_namespaces) | _given(limit=limit, cursor=cursor))
    if as_json:
        write_json(page)
        return
    columns, rows = list(COLUMNS), [_row(delivery) for delivery in page["items"]]
    if all_namespaces or len({delivery.get("namespace") for delivery in page["items"]}) > 1:
        columns, rows = ["NAMESPACE", *columns], [(delivery["namespace"], *row) for delivery, row in zip(page["items"], rows, strict=True)]
    write_table(columns, rows, fold=("EVENT", "ROUTE", "CREATED", "LAST TRY"))
    if page.get("next_cursor"):
        say(f"There are more: --cursor {page['next_cursor']}")


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _row(delivery: dict[str, Any]) -> tuple[Any, ...]:
    last = delivery["tries"][-1] if delivery["tries"] else {}
    told = f"{last['outcome']}: {last['detail']}" if last.get("detail") else last.get("outcome", "")
    return (
        delivery["id"],
        delivery["event"],
        delivery["route"],
        delivery["status"],
        delivery["attempt"],
        local_time(delivery["created_at"]),
        told[:200],
    )


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="Delivery id.", metavar="ID")],
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Show one delivery and all its tries."""
    with connect(url, key, profile) as service:
        delivery = service.call("GET", "deliveries", id)
    if as_json:
        write_json(delivery)
        return
    names = ("id", "event", "event_id", "task_id", "route", "notifier", "status", "attempt")
    times = ("created_at", "next_try_at", "delivered_at")
    write_pairs([*((name, delivery[name]) for name in names), *((name, local_time(delivery[name])) for name in times)])
    console().print()
    tries = [(local_time(one["time"]), one["attempt"], one["outcome"], _seconds(one["duration"]), one["detail"]) for one in delivery["tries"]]
    write_table(("TIME", "ATTEMPT", "OUTCOME", "SECONDS", "CAUSE"), tries, fold=("CAUSE",))


def _seconds(duration: float | None) -> str:
    return "" if duration is None else f"{duration:.2f}"


@app.command()
def redeliver(
    ids: Annotated[Many, typer.Argument(help="Delivery ids; or none, and a filter.", metavar="[ID]...")] = None,
    status: Statuses = None,
    route: Routes = None,
    notifier: Notifiers = None,
    event: Events = None,
    task: Task = None,
    created_after: After = None,
    created_before: Before = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With a filter: count what it finds, and change nothing.")] = False,
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Send deliveries again that are dead or were delivered: those with these ids, or all that a filter finds."""
    chosen = _given(status=status, route=route, notifier=notifier, event=event, task_id=task, created_after=created_after, created_before=created_before)
    if bool(ids) == bool(chosen):
        raise typer.BadParameter("expected delivery ids, or a filter such as --status dead, and not both", param_hint="ID")
    if dry_run and ids:
        raise typer.BadParameter("it goes with a filter", param_hint="--dry-run")
    with connect(url, key, profile) as service:
        if not ids:
            done = service.redeliver_all(dry_run=dry_run, **chosen)
            write_json(done.model_dump(exclude_unset=True)) if as_json else say(f"{done.matched} found, {done.changed} sent again.")
            return
        moved = [service.call("POST", "deliveries", id_, "redeliver") for id_ in ids]
    write_json({"items": moved}) if as_json else write_table(COLUMNS, [_row(delivery) for delivery in moved])
