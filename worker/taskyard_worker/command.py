"""`taskyard worker`."""

from __future__ import annotations

import uuid
import warnings
from typing import Annotated

import typer
from celery.platforms import SecurityWarning
from celery.utils.nodenames import default_nodename, host_format

from taskyard.settings import load_settings
from taskyard_worker.app import create_app


def worker(
    queues: Annotated[str | None, typer.Option(help="Queues to work on, comma-separated. Default: all that installed handlers name.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Sync handlers that run at once. Default: worker.processes.")] = None,
    name: Annotated[str | None, typer.Option(help="The worker's name. Default: taskyard@ and the host's name.")] = None,
) -> None:
    """Run tasks. For Celery's own options use `celery -A taskyard_worker worker`."""
    overrides = {key: value for key, value in {"queues": queues and tuple(queues.split(",")), "processes": processes}.items() if value}
    settings = load_settings(worker=overrides) if overrides else load_settings()
    app = create_app(settings)
    # Several workers on one host need names that differ: %n would be the same for all.
    hostname = host_format(default_nodename(name or f"taskyard-{uuid.uuid4().hex[:6]}@%h"))
    # Handlers run as the user that starts the worker; Celery's long warning for root is about pickle, which is off.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # What `celery worker` does. By way of Celery's command line, a shell, Flower and Redis's client would be imported, too.
    instance = app.Worker(hostname=hostname, loglevel=settings.log.level.upper(), without_mingle=True, without_gossip=True, quiet=True)
    instance.start()
    raise typer.Exit(instance.exitcode or 0)
