"""Look at what can be submitted."""

from __future__ import annotations

from typing import Annotated

import typer

from taskyard.cli.output import AsJson, json_text, write_json, write_lines, write_pairs, write_table
from taskyard.cli.rest import Key, ProfileName, Url, complete_type, connect

app = typer.Typer(help="Look at what can be submitted.", no_args_is_help=True)


@app.command("list")
def list_(url: Url = None, key: Key = None, profile: ProfileName = None, as_json: AsJson = False) -> None:
    """List the task types that are installed."""
    with connect(url, key, profile) as client:
        found = client.task_types()
    if as_json:
        write_json({"items": [kind.model_dump(mode="json") for kind in found]})
        return
    rows = [(kind.type, kind.plugin, kind.defaults.queue, kind.description) for kind in found]
    write_table(("TYPE", "PLUGIN", "QUEUE", "DESCRIPTION"), rows, fold=("DESCRIPTION",))


@app.command()
def show(
    type: Annotated[str, typer.Argument(help="Task type, such as http.request.", metavar="TYPE", autocompletion=complete_type)],
    url: Url = None,
    key: Key = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Show one task type: its defaults, and the JSON Schemas of its payload and result."""
    with connect(url, key, profile) as client:
        kind = client.task_type(type).model_dump(mode="json")
    if as_json:
        write_json(kind)
        return
    schemas = [(name, kind.pop(f"{name}_schema")) for name in ("payload", "result")]
    defaults = kind.pop("defaults")
    write_pairs((name, value) for name, value in (kind | {name.replace("_", " "): value for name, value in defaults.items()}).items())
    for name, schema in schemas:
        write_lines(f"\n{name}", json_text(schema, indent=2))
