"""Look at queues, pause and resume them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from taskyard.cli.output import AsJson, say, write_json, write_table
from taskyard.cli.rest import Key, ProfileName, Url, complete_queue, connect

app = typer.Typer(help="Look at queues, pause and resume them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The queue's name.", metavar="QUEUE", autocompletion=complete_queue)]
COUNTS = ("pending", "queued", "running", "scheduled", "held")


@app.command("list")
def list_(url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False) -> None:
    """List all known queues, how many tasks each has, and what keeps them waiting: a pause, or no worker."""
    with connect(url, key, profile) as service:
        found = service.call("GET", "queues")
    if as_json:
        write_json(found)
        return
    rows = [(queue["name"], _state(queue), *(_count(queue, status) for status in COUNTS), queue["workers"]) for queue in found["items"]]
    write_table(("NAME", "STATE", *map(str.upper, COUNTS), "WORKERS"), rows, fold=("WORKERS",))


def _state(queue: dict[str, Any]) -> str:
    if queue["paused"]:
        return "paused"
    return "served" if queue["workers"] else "no worker"


def _count(queue: dict[str, Any], status: str) -> str:
    return f"{queue[status]}+" if queue["capped"] and queue[status] else str(queue[status])


@app.command()
def pause(queue: Name, url: Url = None, key: Key = None, profile: ProfileName = None) -> None:
    """Stop the dispatch of a queue. What runs goes on, and what is submitted waits."""
    with connect(url, key, profile) as service:
        paused = service.call("POST", f"queues/{quote(queue, safe='')}/pause")
    say(f"The queue {paused['name']!r} is paused: {paused['pending'] + paused['queued']} tasks wait.")


@app.command()
def resume(queue: Name, url: Url = None, key: Key = None, profile: ProfileName = None) -> None:
    """Start the dispatch of a queue again."""
    with connect(url, key, profile) as service:
        resumed = service.call("POST", f"queues/{quote(queue, safe='')}/resume")
    nobody = "" if resumed["workers"] else " No live worker serves it."
    say(f"The queue {resumed['name']!r} is dispatched again.{nobody}")
