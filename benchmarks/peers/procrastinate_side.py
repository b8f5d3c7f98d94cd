"""Procrastinate: `work` is its worker with 50 tasks at once, anything else enqueues."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks.peers.driver import serve, started

CONCURRENCY = 50
DATABASE = os.environ["BENCH_DATABASE"]
app = App(connector=PsycopgConnector(conninfo=DATABASE))


@app.task(name="sync")  # type: ignore[untyped-decorator]  # installed only beside the peers
def sync(number: int) -> None:
    """Do nothing, in a thread."""
    started(number)


@app.task(name="async")  # type: ignore[untyped-decorator]  # installed only beside the peers
async def async_(number: int) -> None:
    """Do nothing, in the event loop."""
    started(number)


def enqueue() -> None:
    """Enqueue what is asked for."""
    with app.replace_connector(SyncPsycopgConnector(conninfo=DATABASE)) as client, client.open():
        client.schema_manager.apply_schema()
        tasks = {name: client.tasks[name] for name in ("sync", "async")}
        serve({name: partial(_defer, task) for name, task in tasks.items()})


def _defer(task: Any, number: int) -> object:
    return task.defer(number=number)


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        with app.open():
            app.run_worker(concurrency=CONCURRENCY, listen_notify=True)
    else:
        enqueue()
