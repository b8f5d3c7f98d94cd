"""Checks of what waits, and will go on waiting until somebody does something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection

from taskyard import backlog, routes, system
from taskyard.backlog import Depth
from taskyard.doctor import Finding, ok, warn
from taskyard.settings import Settings

#: Names that one finding shows.
SHOWN = 10


def check_waiting(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Queues that are paused or that nobody serves, parked tasks, plugins that failed, routes that are off."""
    waiting = [depth for depth in backlog.depths(connection, (), settings.dispatch.worker_silence) if depth.pending + depth.queued]
    yield from _stuck(waiting)
    parked = [f"{row.n} of type {row.type} in queue {row.queue}" for row in backlog.parked(connection)]
    if parked:
        yield warn(
            "parked tasks",
            _named(parked),
            "The worker that took them lacks their type (deploy the plugin there), or could not start its lifespan: see their history.",
        )
    if failed := [f"{name}: {reason}" for name, reason in system.failed_plugins(connection).items()]:
        yield warn("failed plugins", _named(failed), "Mend the cause. A lifespan is tried again by itself; a plugin that can't be loaded at the next start.")
    off = [f"{name}: {row.disabled_reason}" for name, row in routes.states(connection).items() if row.disabled_at is not None]
    if off:
        yield warn("routes that are off", _named(off), "Mend the receiver, then run `taskyard notifiers enable ROUTE`.")


def _stuck(waiting: Iterable[Depth]) -> Iterator[Finding]:
    paused, unserved = [], []
    for depth in waiting:
        told = f"{depth.name} ({depth.pending + depth.queued}{'+' if depth.capped else ''} wait)"
        if depth.paused_at is not None:
            paused.append(told)
        elif not depth.workers:
            unserved.append(told)
    if paused:
        yield warn("paused queues", _named(paused), "Run `taskyard queues resume QUEUE` when it may go on.")
    if unserved:
        yield warn("queues without a worker", _named(unserved), "Start a worker with `--queues QUEUE`, or cancel the tasks.")
    if not paused and not unserved:
        yield ok("queues", "none that has tasks is paused or without a worker")


def _named(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
