"""Look at tasks, and move them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer

from taskyard.cli.output import AsJson, console, json_text, local_time, say, text, write_json, write_pairs, write_table
from taskyard.cli.rest import (
    AllNamespaces,
    Key,
    Namespace,
    ProfileName,
    Url,
    complete_id,
    complete_queue,
    complete_status,
    complete_type,
    connect,
    namespace_filter,
)
from taskyard.cli.submit import write_answer
from taskyard.cli.tasklog import logs
from taskyard.client import Changed, Event, Filters, Task
from taskyard.client.core import Action

app = typer.Typer(help="Look at tasks, and move them.", no_args_is_help=True)
app.command()(logs)

Ids = Annotated[list[str] | None, typer.Argument(help="Task ids; or none, and a filter.", metavar="[ID]...", autocompletion=complete_id)]
Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", help="All tasks with this, such as status=failed or tag=nightly, instead of ids; repeat for more.", metavar="NAME=VALUE"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --filter: say what would change, and change nothing.")]
Id = Annotated[str, typer.Argument(help="Task id.", metavar="ID", autocompletion=complete_id)]
Many = list[str] | None


@app.command("list")
def list_(
    status: Annotated[Many, typer.Option(help="Only this status; repeat for more.", autocompletion=complete_status)] = None,
    type: Annotated[Many, typer.Option(help="Only this type; repeat for more.", autocompletion=complete_type)] = None,
    queue: Annotated[Many, typer.Option(help="Only this queue; repeat for more.", autocompletion=complete_queue)] = None,
    tag: Annotated[Many, typer.Option(help="Only with this tag; repeat for more.")] = None,
    priority: Annotated[int | None, typer.Option(help="Only this priority.")] = None,
    created_after: Annotated[str | None, typer.Option(help="Only created after this time (RFC 3339).")] = None,
    created_before: Annotated[str | None, typer.Option(help="Only created before this time (RFC 3339).")] = None,
    q: Annotated[str | None, typer.Option("--query", "-q", help="First letters of an id, type or tag.")] = None,
    unique_key: Annotated[Many, typer.Option(help="Only with this unique_key; repeat for more.")] = None,
    metadata: Annotated[Many, typer.Option(help="Only with this in their metadata; repeat for more.", metavar="NAME=VALUE")] = None,
    parent: Annotated[str | None, typer.Option(help="Only those that this task's handler submitted.", metavar="ID")] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Tasks at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where a list ended.")] = None,
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    given: dict[str, Any] = {"status": status, "type": type, "queue": queue, "tag": tag, "priority": priority, "q": q, "unique_key": unique_key}
    given |= {"metadata": dict(_pair(word, "--metadata") for word in metadata)} if metadata else {}
    given |= {"created_after": created_after, "created_before": created_before, "parent_id": parent, **namespace_filter(namespace, all_namespaces)}
    with connect(url, key, profile) as client:
        page = client.page(limit=limit, cursor=cursor, **cast(Filters, {name: value for name, value in given.items() if value is not None}))
    if as_json:
        write_json(page.model_dump(mode="json"))
        return
    columns, rows = ["ID", "TYPE", "STATUS", "QUEUE", "PRIO", "CREATED"], [_row(task) for task in page.items]
    if all_namespaces or len({task.namespace for task in page.items}) > 1:
        columns, rows = ["NAMESPACE", *columns], [(task.namespace, *row) for task, row in zip(page.items, rows, strict=True)]
    write_table(columns, rows, fold=("TYPE", "QUEUE", "CREATED"))
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


def _row(task: Task) -> tuple[Any, ...]:
    return task.id, task.type, task.status, task.queue, task.priority, local_time(task.created_at)


@app.command()
def show(id: Id, url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False) -> None:
    """Show one task and its history."""
    with connect(url, key, profile) as client:
        task = client.get(id)
        events = list(client.events(id))
    if as_json:
        told = [event.model_dump(mode="json", exclude={"task"}) for event in events]
        write_json(task.model_dump(mode="json") | {"events": told})
        return
    write_answer(task, as_json=False)
    if task.position:
        start = local_time(task.estimated_start) if task.estimated_start else "unknown"
        say(f"In line: {task.position}. Estimated start: {start}.")
    console().print()
    write_table(("TIME", "EVENT", "ATTEMPT", "DATA"), [_event_row(event) for event in events], fold=("DATA",))


def _event_row(event: Event) -> tuple[Any, ...]:
    return local_time(event.time), event.type, event.attempt, json_text(_without_traceback(event.data)) if event.data else ""


def _without_traceback(data: Mapping[str, Any]) -> dict[str, Any]:
    """What an event tells, in one line. The task has the traceback of its last error, and JSON those of all."""
    error = data.get("error")
    return {**data, "error": {name: value for name, value in error.items() if name != "traceback"}} if isinstance(error, dict) else dict(data)


@app.command()
def watch(
    id: Annotated[str | None, typer.Argument(help="Task id; or none, for all tasks.", metavar="[ID]", autocompletion=complete_id)] = None,
    filter: Annotated[list[str] | None, typer.Option("--filter", "-f", help="Of all tasks, those with this; repeat for more.", metavar="NAME=VALUE")] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Show a task's events as they happen, until its end; exit with 1 unless it succeeded. Without an id, those of all tasks until Ctrl-C."""
    chosen = namespace_filter(namespace, all_namespaces)
    if id and (filter or chosen):
        raise typer.BadParameter("expected a task's id, or --filter and namespaces, and not both", param_hint="ID")
    with connect(url, key, profile) as client:
        if id is None:
            for event in client.watch(**cast(Filters, _filter(filter or []) | chosen)):
                _show_event(event, as_json=as_json, whose=True)
            return
        for event in client.follow(id):
            _show_event(event, as_json=as_json)
        task = client.get(id)
    if not as_json:
        _show_end(task)
    if task.status != "succeeded":
        raise typer.Exit(1)


def _show_end(task: Task) -> None:
    """What a task came to: its result, or why it has none."""
    error = task.error.model_dump(mode="json", exclude={"traceback"}) if task.error else None
    write_pairs([("status", task.status), ("result", json_text(task.result)) if task.status == "succeeded" else ("error", error)])


def _show_event(event: Event, *, as_json: bool, whose: bool = False) -> None:
    if as_json:
        write_json(event.model_dump(mode="json"), indent=None)
        return
    time, type_, *rest = _event_row(event)
    task = [str(event.task_id), event.task.type if event.task else ""] if whose else []
    console().print(text("  ".join(str(part) for part in (time, *task, type_, *rest))))


def _move(
    verb: Action, ids: list[str] | None, filters: list[str] | None, url: str | None, key: str | None, profile: str | None, *, dry_run: bool, as_json: bool
) -> None:
    if bool(ids) == bool(filters):
        raise typer.BadParameter("expected task ids, or --filter, and not both", param_hint="ID")
    if dry_run and not filters:
        raise typer.BadParameter("it goes with --filter", param_hint="--dry-run")
    with connect(url, key, profile) as client:
        if filters:
            done = client.act(verb, dry_run=dry_run, **_filter(filters))
            write_json(done.model_dump(exclude_unset=True)) if as_json else say(_outcome(done, dry_run=dry_run))
            return
        move = {"cancel": client.cancel, "retry": client.retry, "hold": client.hold, "release": client.release}[verb]
        moved = [move(id_) for id_ in ids or ()]
    if as_json:
        write_json({"items": [task.model_dump(mode="json") for task in moved]})
    else:
        write_table(("ID", "TYPE", "STATUS"), [(task.id, task.type, "asked to stop" if _stopping(task) else task.status) for task in moved])


def _outcome(done: Changed, *, dry_run: bool) -> str:
    if not dry_run:
        return f"{done.matched} found, {done.changed} changed."
    moves = (f"{one.count} {one.status} → {'asked to stop' if one.becomes == 'running' else one.becomes}" for one in done.would_change)
    return f"{done.matched} found. Would change: {', '.join(moves) or 'nothing'}."


def _filter(given: list[str]) -> Filters:
    """Words as the service's filter. What is wrong with a name or a value is the service's to say."""
    found: dict[str, Any] = {}
    for word in given:
        name, value = _pair(word, "--filter")
        if name in ("status", "type", "queue", "tag", "id", "unique_key"):
            found.setdefault(name, []).append(value)
        elif name.startswith("metadata."):
            found.setdefault("metadata", {})[name.removeprefix("metadata.")] = value
        elif name in found:
            raise typer.BadParameter(f"{name} can be given once", param_hint="--filter")
        else:
            found[name] = int(value) if name == "priority" and value.isdecimal() else value
    return cast(Filters, found)


def _pair(word: str, option: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise typer.BadParameter(f"{word!r}: expected a name and a value, such as status=failed", param_hint=option)
    return name, value


def _stopping(task: Task) -> bool:
    return task.status == "running" and task.cancel_requested


@app.command()
def cancel(
    ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False
) -> None:
    """Cancel tasks; a running one is asked to stop."""
    _move("cancel", ids, filter, url, key, profile, dry_run=dry_run, as_json=as_json)


@app.command()
def retry(
    ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False
) -> None:
    """Run tasks again that failed, were cancelled or expired."""
    _move("retry", ids, filter, url, key, profile, dry_run=dry_run, as_json=as_json)


@app.command()
def hold(
    ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False
) -> None:
    """Take tasks out of line."""
    _move("hold", ids, filter, url, key, profile, dry_run=dry_run, as_json=as_json)


@app.command()
def release(
    ids: Ids = None, filter: Filter = None, dry_run: DryRun = False, url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False
) -> None:
    """Put held tasks back in line."""
    _move("release", ids, filter, url, key, profile, dry_run=dry_run, as_json=as_json)
