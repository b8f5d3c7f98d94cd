"""Submitting from a Python service that shares Taskyard's database: in its own transaction, which decides about the task too.

Importing this imports no SQLAlchemy: what needs it is imported when something is submitted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload
from uuid import UUID

from taskyard.errors import ConfigurationError, Unavailable, UniqueConflict
from taskyard.handlers import Handler
from taskyard.payloads import payload_json
from taskyard.task_options import Options, in_process

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from taskyard.lifecycle import Status
    from taskyard.plugins import Registry
    from taskyard.records import NewTask


P = TypeVar("P")
#: A key's holder may end between two statements: then the key is free, and the task is inserted again. So often at most.
TRIES = 10


@dataclass(frozen=True, slots=True)
class SubmittedTask:
    """A task that is there once the caller's transaction commits. Times are the database's: ``created_at`` is when that transaction began."""

    id: UUID
    namespace: str
    type: str
    status: Status
    queue: str
    priority: int
    run_at: datetime
    created_at: datetime
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
    unique_key: str | None


@overload
def submit(
    connection: Connection | Session,
    type: Handler[P, Any],
    payload: P,
    *,
    namespace: str = ...,
    registry: Registry | None = ...,
    wake: bool = ...,
    **options: Unpack[Options],
) -> SubmittedTask: ...
@overload
def submit(
    connection: Connection | Session,
    type: str,
    payload: Any,
    *,
    namespace: str = ...,
    registry: Registry | None = ...,
    wake: bool = ...,
    **options: Unpack[Options],
) -> SubmittedTask: ...
def submit(
    connection: Connection | Session,
    type: str | Handler[Any, Any],
    payload: Any,
    *,
    namespace: str = "default",
    registry: Registry | None = None,
    wake: bool = True,
    **options: Unpack[Options],
) -> SubmittedTask:
    """Submit a task in the transaction of ``connection``: it can be seen, and run, if and when that commits. Commits nothing itself.

    ``options`` are those of ``POST /tasks`` (priority, queue, run_at, tags, unique_key, ...). The payload is validated by the handler of the
    type, which ``registry`` has: by default, that of the installed plugins and this process's settings, loaded once, when it is first needed.
    With ``wake`` the commit tells the dispatchers; without it they find the task by themselves, within ``dispatch.tick``.

    Raises:
        UnknownTaskType: no installed plugin brings the type.
        InvalidInput: the payload or an option breaks a rule; carries pointers.
        UniqueConflict: a live task has the ``unique_key``. The transaction goes on: nothing was written.
        Unavailable: something on the table, such as a trigger, keeps the task out of it. The transaction goes on: nothing was written.
        ConfigurationError: the connection is to another kind of database than PostgreSQL; or see taskyard.settings.load_settings.
    """
    return _insert(_connection(connection), _prepare(type, payload, namespace, registry, options), wake=wake)


@overload
async def submit_async(
    connection: AsyncConnection | AsyncSession,
    type: Handler[P, Any],
    payload: P,
    *,
    namespace: str = ...,
    registry: Registry | None = ...,
    wake: bool = ...,
    **options: Unpack[Options],
) -> SubmittedTask: ...
@overload
async def submit_async(
    connection: AsyncConnection | AsyncSession,
    type: str,
    payload: Any,
    *,
    namespace: str = ...,
    registry: Registry | None = ...,
    wake: bool = ...,
    **options: Unpack[Options],
) -> SubmittedTask: ...
async def submit_async(
    connection: AsyncConnection | AsyncSession,
    type: str | Handler[Any, Any],
    payload: Any,
    *,
    namespace: str = "default",
    registry: Registry | None = None,
    wake: bool = True,
    **options: Unpack[Options],
) -> SubmittedTask:
    """:func:`submit` in the transaction of an AsyncConnection or AsyncSession."""
    from sqlalchemy.ext.asyncio import AsyncSession

    task = _prepare(type, payload, namespace, registry, options)
    used = await connection.connection() if isinstance(connection, AsyncSession) else connection
    return await used.run_sync(_insert, task, wake=wake)


def _connection(given: Connection | Session) -> Connection:
    from sqlalchemy.orm import Session

    return given.connection() if isinstance(given, Session) else given


def _prepare(type: str | Handler[Any, Any], payload: Any, namespace: str, registry: Registry | None, options: Mapping[str, Any]) -> NewTask:
    from taskyard.submission import prepare

    fields: dict[str, Any] = {
        "type": type.type if isinstance(type, Handler) else type,
        "payload": payload_json(payload),
        **in_process(options),
    }
    return prepare(registry or _installed(), fields, namespace=namespace)


def _insert(connection: Connection, task: NewTask, *, wake: bool) -> SubmittedTask:
    from taskyard import interference, lifecycle
    from taskyard.channels import announce

    if connection.dialect.name != "postgresql":
        raise ConfigurationError(f"submit: expected a connection to Taskyard's PostgreSQL, not to {connection.dialect.name}.")
    tries = 0
    while not (row := lifecycle.submit(connection, [task]).get(task.id)):
        # Whoever had the key may have ended between the two statements: then it is free.
        key = task.unique_key or ""
        if holder := lifecycle.live_with_unique_key(connection, task.namespace, key):
            raise UniqueConflict(key, str(holder))
        tries += 1
        if tries == TRIES or task.unique_key is None:
            raise Unavailable(f"{interference.discarded(connection)}.")
    if wake:
        announce(connection, [(task.queue, task.lane)])
    return SubmittedTask(
        id=task.id,
        namespace=task.namespace,
        type=task.type,
        status=row["status"],
        queue=task.queue,
        priority=task.priority,
        run_at=row["run_at"],
        created_at=row["created_at"],
        tags=task.tags,
        metadata=task.metadata,
        unique_key=task.unique_key,
    )


_loading = threading.Lock()
_loaded: list[Registry] = []


def _installed() -> Registry:
    """The registry of this process's settings. Plugins are loaded once for all its threads."""
    with _loading:
        if not _loaded:
            from taskyard.plugins import load_plugins_for
            from taskyard.settings import load_settings

            _loaded.append(load_plugins_for(load_settings()))
        return _loaded[0]
