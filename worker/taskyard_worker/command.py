"""`taskyard worker`."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from celery.platforms import SecurityWarning

from taskyard.settings import load_settings
from taskyard_worker.app import create_app
from taskyard_worker.name_lock import take_name
from taskyard_worker.names import full_name


def worker(
    queues: Annotated[str | None, typer.Option(help="Queues to work on, comma-separated. Default: all that installed handlers name.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Sync handlers that run at once. Default: worker.processes.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The worker's name, which no other one has: w1, or w1@ops. Without @, the host's name is added. Default: a new one.")
    ] = None,
) -> None:
    """Run tasks. For Celery's own options use `celery -A taskyard_worker worker`."""
    overrides = {key: value for key, value in {"queues": queues and tuple(queues.split(",")), "processes": processes}.items() if value}
    settings = load_settings(worker=overrides) if overrides else load_settings()
    hostname = full_name(name)
    app = create_app(settings)
    app.taskyard_name = take_name(app, hostname)
    # Handlers run as the user that starts the worker; Celery's long warning for root is about pickle, which is off.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # What `celery worker` does. By way of Celery's command line, a shell, Flower and Redis's client would be imported, too.
    instance = app.Worker(hostname=hostname, loglevel=settings.log.level.upper(), without_mingle=True, without_gossip=True, quiet=True)
    instance.start()
    raise typer.Exit(instance.exitcode or 0)
