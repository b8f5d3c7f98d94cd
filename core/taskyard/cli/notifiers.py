"""Try notifiers."""

from __future__ import annotations

import typer

from taskyard.cli.trial import send_test

app = typer.Typer(help="Try notifiers.", no_args_is_help=True)
app.command("test")(send_test)


@app.callback()
def notifiers() -> None:
    """Try notifiers."""
