"""Which parts of an installation are usable. A web process is ready when it can take tasks: with database and schema, and if a write would
work now. Workers, dispatchers and the broker are shown, and decide nothing: without them tasks are accepted and wait, and taking the web
service away would help nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from taskyard import gauges, queries, workers, write_check
from taskyard.database_check import encoding_problem, server_encoding
from taskyard.dispatchers import BrokerState
from taskyard.settings import Settings
from taskyard.tables import SCHEMA_REVISION

OK = write_check.OK
#: What the part ``process`` says while a web process stops; there is no such part before.
STOPPING = "stopping: send requests elsewhere"
#: The parts that a web process needs.
NEEDED = ("database", "schema", "writes")
#: The others.
SHOWN = ("dispatcher", "workers", "broker")


def look(connection: Connection, settings: Settings, trial_bytes: int) -> dict[str, str]:
    """Each part's state: ``ok``, or what is wrong with it. ``trial_bytes``: see :mod:`taskyard.write_check`. Rolls back."""
    revision = queries.schema_revision(connection)
    if not queries.schema_is_usable(revision):
        schema = f"at {revision or 'nothing'}, needs {SCHEMA_REVISION}: run `taskyard db upgrade`"
        return {"database": OK, "schema": schema} | dict.fromkeys(("writes", *SHOWN), "unknown: the schema is not usable")
    roles = gauges.roles(connection, settings)
    return {
        "database": encoding_problem(server_encoding(connection)) or OK,
        "schema": OK,
        "writes": write_check.look(connection, trial_bytes),
        "dispatcher": OK if roles.dispatcher else "none used the database lately: tasks are accepted, and wait",
        "workers": _workers(roles.workers, settings),
        "broker": _broker(roles.broker),
    }


def _workers(found: Sequence[workers.LiveWorker], settings: Settings) -> str:
    if not found:
        return f"none beat within {settings.dispatch.worker_silence:g} s: tasks are accepted, and wait"
    return workers.stuck_sentence(found) or OK


def _broker(state: BrokerState) -> str:
    """The broker as the dispatchers see it. Their logs have the reason, which may name what is none of a client's business."""
    if not state.dispatchers:
        return "unknown: no dispatcher has looked lately"
    if not state.away:
        return OK
    return f"away for {state.away} of {state.dispatchers} dispatchers, whose logs say why: tasks are accepted, and wait"


def unreachable(reason: str) -> dict[str, str]:
    """The parts when the database can't be asked."""
    return {"database": reason} | dict.fromkeys((*NEEDED[1:], *SHOWN), "unknown: the database can't be asked")


def is_ready(parts: dict[str, str]) -> bool:
    """Can a web process do its work, and will it be there for a while?"""
    return all(parts[part] == OK for part in NEEDED) and parts.get("process", OK) == OK
