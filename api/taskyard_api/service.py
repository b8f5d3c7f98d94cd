"""What a request works with: settings, plugins, the engine, and two ways to run core's functions on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Concatenate, ParamSpec, TypeVar

from fastapi import Depends, Request
from sqlalchemy import Connection, RowMapping

from taskyard import audit, failpoints, gauges, ids, metrics, readiness, workers
from taskyard.audit import Actor
from taskyard.dispatch.app import create_celery
from taskyard.dispatch.direct import DirectHints
from taskyard.errors import InvalidInput
from taskyard.ids import PublicIds
from taskyard.keys import Caller
from taskyard.metrics import Tally
from taskyard.plugins import Registry
from taskyard.queries import TaskFilters
from taskyard.queue_names import AllowedQueues
from taskyard.settings import Settings
from taskyard_api.announcer import Announcer
from taskyard_api.database import Database
from taskyard_api.errors import Forbidden
from taskyard_api.glimpse import Glimpse
from taskyard_api.group_commit import GroupCommit
from taskyard_api.key_lookups import KeyLookups
from taskyard_api.lists import Lists
from taskyard_api.live import Feed
from taskyard_api.measures import Measures
from taskyard_api.quotas import Quotas
from taskyard_api.served import Served
from taskyard_api.waits import Waits
from taskyard_api.watch import address_of

#: Every row has a namespace; without keys, all callers share this one.
NAMESPACE = "default"
#: Where the gate leaves whose key was shown, in the request's scope.
CALLER = "taskyard.caller"
#: Seconds that numbers are shown plainly without asking whether they are to be hidden.
IDS_FRESH = 5.0
P = ParamSpec("P")
R = TypeVar("R")
Id = TypeVar("Id")


class Service:
    """One process's REST service. Made inside the event loop that it serves; ``own`` counts what is of this process alone."""

    def __init__(self, settings: Settings, registry: Registry, own: Tally) -> None:
        self.settings = settings
        self.registry = registry
        self.declared_queues = sorted({handler.queue for handler in registry.handlers.values()})
        self.database = Database(settings.database)
        self.engine = self.database.engine
        self.commits = GroupCommit(self.database)
        self.lists = Lists(settings)
        self.quotas = Quotas(settings.quotas, self.database) if settings.quotas.any else None
        self.key_lookups = KeyLookups(self.database)
        self.hints = self._direct_hints()
        self.announcer = Announcer(self.database, self.hints.hear if self.hints else None)
        self.feed = Feed(self.database, settings.api.max_streams)
        self._ids, self._ids_until = PublicIds(), 0.0
        self.waits = Waits(self.database)
        self.measures = Measures(self.database, Tally.of(registry), own, self.feed, self.waits)
        self.served = Served(lambda: self.read(workers.served_queues, settings.dispatch.worker_silence))
        self.scrape = Glimpse(lambda: self.read(gauges.scrape, settings, self.measures.shared))
        self.readiness = Glimpse(self._look_at_readiness)

    async def close(self) -> None:
        """Finish what is on its way, and let the database go."""
        await self.served.close()
        await self.feed.close()
        await self.waits.close()
        await self.commits.close()
        await self.key_lookups.close()
        if self.hints is not None:
            await asyncio.to_thread(self.hints.close)
        await self.announcer.close()
        for glimpse in (self.scrape, self.readiness):
            await glimpse.close()
        await self.measures.close()
        await self.database.close()

    async def _look_at_readiness(self) -> dict[str, str]:
        writes = self.database.writes
        trial = writes.trial_bytes()
        parts = await self.read(readiness.look, self.settings, trial)
        if trial and parts["writes"] == readiness.OK:
            writes.worked()
        return parts

    async def read(self, query: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of core's queries. Raises Unavailable when the database is away."""
        return await self.database.read(query, *args, **kwargs)

    async def listed(self, namespace: str, query: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """:meth:`read` for a list: in the share and the time that lists have. Raises Unavailable when either is used up."""
        async with self.lists.place(namespace):
            return await self.read(self.lists.timed(query), *args, **kwargs)

    async def write(self, verb: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one of core's verbs and commit. Raises Unavailable when the database is away."""
        done = await self.database.write(verb, *args, **kwargs)
        failpoints.hit("verb.committed")
        return done

    async def operate(
        self,
        request: Request,
        name: str,
        target: str | Callable[[R], str],
        verb: Callable[Concatenate[Connection, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """:meth:`write`, and an entry in the audit: who called, from where, and what for. ``target`` may be made of what the verb answers."""
        actor = Actor.of_caller(caller_of(request), address_of(request.scope))

        def noted(connection: Connection) -> R:
            done = verb(connection, *args, **kwargs)
            audit.record(connection, actor, name, target if isinstance(target, str) else target(done))
            return done

        return await self.write(noted)

    def queues_of(self, namespace: str) -> AllowedQueues | None:
        """The queues that submissions of a namespace may name; None: any."""
        return AllowedQueues.of(self.settings.quotas.of(namespace).queues, self.declared_queues)

    async def public_ids(self) -> PublicIds:
        """How numbers are shown. Once they are hidden they stay so; until then a key may be made at any time."""
        if self._ids.secret is None and (now := time.monotonic()) >= self._ids_until:
            self._ids, self._ids_until = await self.read(ids.of), now + IDS_FRESH
        return self._ids

    def widened(self, filters: TaskFilters) -> TaskFilters:
        """The same filters; a type finds what was stored under its older names too."""
        return replace(filters, type=self.registry.stored_as(filters.type))

    def submitted(self, row: RowMapping) -> None:
        """A task is new, and committed: count it, and tell dispatchers."""
        metrics.count_submitted(self.measures.shared, row)
        self.announce(row)

    def moved(self, row: RowMapping) -> None:
        """A verb moved a task, and that is committed: count its end, if it is one, and tell dispatchers."""
        metrics.count_ended(self.measures.shared, row)
        self.announce(row)

    def announce(self, row: RowMapping) -> None:
        """Tell a worker of a task's row by a direct hint, if it is ready and its line is open; else dispatchers, if it is ready or planned: they sleep
        until the next planned time that they know.
        """
        if row["status"] not in ("pending", "scheduled"):
            return
        line = row["queue"], row["lane"]
        if row["status"] == "pending" and self.hints is not None and self.hints.offer(line, row["id"], row["type"]):
            self.measures.shared.count(metrics.DIRECT_HINTS)
            self.announcer.announce_hinted(*line)
        else:
            self.announcer.announce(*line)

    def _direct_hints(self) -> DirectHints | None:
        """None where they are turned off, or no broker is configured here."""
        broker = self.settings.broker
        if not self.settings.api.direct_hints or broker.url is None:
            return None
        loop = asyncio.get_running_loop()

        def dropped(line: tuple[str, str]) -> None:
            # The loop may be gone: then this process ends, and a dispatcher's tick finds the task.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self.announcer.announce, *line)

        return DirectHints(create_celery(self.settings), broker, dropped)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


async def _serving(request: Request) -> Service:
    return service_of(request)


#: A call's parameter. The dependency is a coroutine: FastAPI would run a plain function on a thread.
Serving = Annotated[Service, Depends(_serving)]


def caller_of(request: Request) -> Caller | None:
    """Whose key came with the request; None where no keys are asked for."""
    caller: Caller | None = request.scope.get(CALLER)
    return caller


def namespace_of(request: Request) -> str:
    """The namespace that a request's reads and writes are bound to."""
    caller = caller_of(request)
    return caller.namespace if caller else NAMESPACE


def may_read_tasks(request: Request) -> bool:
    """May a request's caller see payloads, results and whatever else a task holds?"""
    caller = caller_of(request)
    return caller is None or caller.may("tasks:read")


#: What ``namespace=`` may say for all of them.
EVERY = "*"


def reach_of(request: Request, wanted: str | None) -> str | None:
    """The namespace whose lists and events a request reads, None for all. ``wanted`` is the one that it names, or :data:`EVERY`.

    Raises:
        Forbidden: it names another one than its key's, without the scope ``all-namespaces``.
        InvalidInput: the same where no keys are asked for: there all is in one namespace.
    """
    caller, own = caller_of(request), namespace_of(request)
    if caller and caller.reads_all:
        return None if wanted == EVERY else wanted
    if wanted in (None, own):
        return own
    if caller:
        raise Forbidden(caller.name, "all-namespaces")
    raise InvalidInput("Without keys, every call is bound to one namespace.", [("/namespace", f"expected {own!r}, or nothing")])


async def home_of(request: Request, find: Callable[[Connection, Id], str | None], id_: Id, *, write: bool = False) -> str:
    """The namespace in which a call looks for what it addresses by its id: the caller's own, and for a key with `all-namespaces` that of the thing.

    Raises:
        Forbidden: it would ``write`` to what is another namespace's, without the scope ``admin``.
    """
    caller, own = caller_of(request), namespace_of(request)
    if caller is None or not caller.reads_all:
        return own
    found = await service_of(request).read(find, id_) or own
    if write and found != own and not caller.may("admin"):
        raise Forbidden(caller.name, "admin")
    return found


async def _namespace(request: Request) -> str:
    return namespace_of(request)


Namespace = Annotated[str, Depends(_namespace)]
