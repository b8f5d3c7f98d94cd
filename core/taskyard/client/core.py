"""The calls, each written once. :mod:`taskyard.client.clients` has them for programs that block and for those that await."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack
from uuid import UUID

import httpx2
from pydantic import TypeAdapter

from taskyard.client import streams
from taskyard.client.errors import WaitTimeout
from taskyard.client.exchange import Call, Exchange, get
from taskyard.client.models import ActionStep, Changed, Checked, Delivery, Event, LogLine, Notifier, Page, Place, Plugin, Queue, Task, TaskType, WouldChange
from taskyard.client.submissions import Changes, DeliveryFilters, Filters, New, new_task, query
from taskyard.task_options import plain

Id = UUID | str
Action = Literal["cancel", "hold", "release", "retry"]
#: Seconds that the service waits at most (``Prefer: wait``), and those that its answer may take beside.
LONGEST_WAIT, GRACE = 60, 15.0
#: A service that answers a wait too soon is not asked all the time (seconds).
SOON = 0.5

TASK = TypeAdapter(Task)
TASKS = TypeAdapter(Page[Task])
EVENTS = TypeAdapter(Page[Event])
LOGS = TypeAdapter(Page[LogLine])
DELIVERIES = TypeAdapter(Page[Delivery])
CHECKED = TypeAdapter(Checked)
QUEUE = TypeAdapter(Queue)
JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submission made. ``replayed``: an earlier one with the same key had made it."""

    tasks: tuple[Task, ...]
    replayed: bool
    #: That no live worker serves a queue of them.
    warning: str | None = None

    @classmethod
    def of(cls, tasks: tuple[Task, ...], headers: Mapping[str, str]) -> Submitted:
        """What an answer with these headers says."""
        return cls(tasks, "idempotency-replayed" in headers, headers.get("taskyard-warning"))


class Core:
    """All calls to one service, as coroutines over a wire."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    # --- submit ---

    async def submit(self, new: New[Any], idempotency_key: str | None = None) -> Submitted:
        """Submit one task. Without a key it gets one, which its retries keep: however often it is sent, one task is made."""
        response = await self.exchange.perform(_keyed("tasks", body=new.body(), key=idempotency_key))
        return Submitted.of((self.exchange.read(response, TASK),), response.headers)

    async def batch(self, new: Sequence[New[Any]], idempotency_key: str | None = None) -> Submitted:
        """Submit up to 1,000 tasks, all or none."""
        response = await self.exchange.perform(_keyed("tasks", "batch", body={"tasks": [one.body() for one in new]}, key=idempotency_key))
        return Submitted.of(self.exchange.read(response, TASKS).items, response.headers)

    async def check(self, new: New[Any] | Mapping[str, Any]) -> Checked:
        """Check a submission, and submit nothing. It is given as for a batch."""
        call = Call("POST", ("tasks",), body=new_task(new).body(), params={"validate_only": "true"}, safe=True)
        response = await self.exchange.perform(call)
        return self.exchange.read(response, CHECKED).model_copy(update={"warning": response.headers.get("taskyard-warning")})

    # --- look ---

    async def get(self, task_id: Id, *, wait: float | None = None) -> Task:
        """One task; with ``wait`` when it has ended or so many seconds (60 at most) have passed."""
        if wait is None:
            return await self.exchange.ask(get("tasks", task_id), TASK)
        seconds = max(0, min(LONGEST_WAIT, math.ceil(wait)))
        timeout = httpx2.Timeout(seconds + GRACE, connect=10.0)
        return await self.exchange.ask(get("tasks", task_id, headers={"Prefer": f"wait={seconds}"}, timeout=timeout), TASK)

    async def wait(self, task_id: Id, *, timeout: float | None = None) -> Task:
        """A task once it has ended. ``timeout`` is in seconds; None waits for as long as it takes.

        Raises:
            WaitTimeout: it has not ended by then.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            asked = time.monotonic()
            task = await self.get(task_id, wait=min(LONGEST_WAIT, max(0.0, end - asked)))
            now = time.monotonic()
            if task.ended:
                return task
            if now >= end:
                raise WaitTimeout(task, timeout or 0.0)
            if now - asked < SOON:
                await self.exchange.wire.sleep(min(SOON, end - now))

    async def place(self, task_id: Id) -> Place:
        """Where a waiting task stands in its line."""
        return await self.exchange.ask(get("tasks", task_id, "place"), TypeAdapter(Place))

    async def page(self, *, limit: int = 50, cursor: str | None = None, fields: Iterable[str] | None = None, **filters: Unpack[Filters]) -> Page[Task]:
        """One page of the tasks that the filters let through, newest first; with ``fields`` only these, and those that every :class:`Task` has."""
        params = {"limit": limit, **query(filters), **_fields(fields)} | ({} if cursor is None else {"cursor": cursor})
        return await self.exchange.ask(get("tasks", params=params), TASKS)

    def list(self, *, fields: Iterable[str] | None = None, **filters: Unpack[Filters]) -> AsyncGenerator[Task, None]:
        """All tasks that the filters let through, newest first, a page at a time; ``fields`` as for :meth:`page`."""
        return streams.items(self.exchange, ("tasks",), query(filters) | _fields(fields), TASKS)

    def events(self, task_id: Id) -> AsyncGenerator[Event, None]:
        """A task's history so far, oldest first."""
        return streams.items(self.exchange, ("tasks", str(task_id), "events"), {}, EVENTS)

    def logs(self, task_id: Id, *, level: Sequence[str] = ()) -> AsyncGenerator[LogLine, None]:
        """What a task's handler has logged so far, oldest first; of some levels, or of all. :meth:`follow` has them live, as ``task.log``."""
        return streams.items(self.exchange, ("tasks", str(task_id), "logs"), {"level": list(level)} if level else {}, LOGS)

    # --- live ---

    def follow(self, task_id: Id, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """A task's events, from its first (or from the one ``after``) on, as they happen, until it has ended; progress too."""
        return streams.follow(self.exchange, ("tasks", str(task_id), "stream"), {}, after)

    def watch(self, *, after: str | None = None, **filters: Unpack[Filters]) -> AsyncGenerator[Event, None]:
        """The events of all tasks that the filters let through, from now (or from the one ``after``) on, without an end."""
        return streams.follow(self.exchange, ("events",), plain(filters), after)

    # --- move ---

    async def cancel(self, task_id: Id, *, if_version: int | None = None) -> Task:
        """Cancel a task; one that runs is asked to stop. With ``if_version`` only if nobody has changed it since."""
        return await self._move(task_id, "cancel", if_version)

    async def retry(self, task_id: Id, *, if_version: int | None = None) -> Task:
        """Run a task again that failed, expired or was cancelled."""
        return await self._move(task_id, "retry", if_version)

    async def hold(self, task_id: Id, *, if_version: int | None = None) -> Task:
        """Take a task out of line."""
        return await self._move(task_id, "hold", if_version)

    async def release(self, task_id: Id, *, if_version: int | None = None) -> Task:
        """Put a held task back in line."""
        return await self._move(task_id, "release", if_version)

    async def update(self, task_id: Id, *, if_version: int | None = None, **changes: Unpack[Changes]) -> Task:
        """Change a task."""
        return await self.exchange.ask(Call("PATCH", ("tasks", str(task_id)), body=plain(changes), headers=_if_match(if_version)), TASK)

    async def act(self, action: Action, *, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        """One verb on all tasks that the filters let through; without a filter, on all tasks. However long it takes."""
        return await self._act_on("tasks", action, filters, dry_run)

    async def _act_on(self, things: str, action: str, filters: Mapping[str, Any], dry_run: bool) -> Changed:
        body = {"action": action, "filter": plain(filters), "dry_run": dry_run}
        matched = changed = 0
        would: Counter[tuple[str, str]] = Counter()
        cursor: str | None = ""
        while cursor is not None:
            more = {"cursor": cursor} if cursor else {}
            call = Call("POST", (things, "actions"), body=body | more, safe=dry_run, timeout=httpx2.Timeout(None, connect=10.0))
            step = await self.exchange.ask(call, TypeAdapter(ActionStep))
            matched, changed, cursor = matched + step.matched, changed + step.changed, step.next_cursor
            would.update({(one.status, one.becomes): one.count for one in step.would_change})
        if not dry_run:
            return Changed(matched=matched, changed=changed)
        counts = tuple(WouldChange(status=old, becomes=new, count=count) for (old, new), count in sorted(would.items()))
        return Changed(matched=matched, changed=changed, would_change=counts)

    async def _move(self, task_id: Id, verb: str, if_version: int | None) -> Task:
        return await self.exchange.ask(Call("POST", ("tasks", str(task_id), verb), headers=_if_match(if_version)), TASK)

    # --- what there is ---

    async def task_types(self) -> tuple[TaskType, ...]:
        """What can be submitted."""
        return (await self.exchange.ask(get("task-types"), TypeAdapter(Page[TaskType]))).items

    async def task_type(self, type: str) -> TaskType:
        """One task type."""
        return await self.exchange.ask(get("task-types", type), TypeAdapter(TaskType))

    async def plugins(self) -> tuple[Plugin, ...]:
        """What is installed, and what failed to load."""
        return (await self.exchange.ask(get("plugins"), TypeAdapter(Page[Plugin]))).items

    async def notifiers(self) -> tuple[Notifier, ...]:
        """The notifiers that routes can use."""
        return (await self.exchange.ask(get("notifiers"), TypeAdapter(Page[Notifier]))).items

    async def queues(self) -> tuple[Queue, ...]:
        """How much waits in each queue."""
        return (await self.exchange.ask(get("queues"), TypeAdapter(Page[Queue]))).items

    async def pause(self, queue: str) -> Queue:
        """Dispatch nothing of a queue any more; what runs goes on."""
        return await self.exchange.ask(Call("POST", ("queues", queue, "pause"), safe=True), QUEUE)

    async def resume(self, queue: str) -> Queue:
        """Dispatch a queue again."""
        return await self.exchange.ask(Call("POST", ("queues", queue, "resume"), safe=True), QUEUE)

    def deliveries(self, **filters: Unpack[DeliveryFilters]) -> AsyncGenerator[Delivery, None]:
        """All deliveries of notifications that the filters let through, newest first."""
        return streams.items(self.exchange, ("deliveries",), plain(filters), DELIVERIES)

    async def redeliver(self, delivery_id: str) -> Delivery:
        """Send a delivery again that is dead or delivered."""
        return await self.exchange.ask(Call("POST", ("deliveries", delivery_id, "redeliver")), TypeAdapter(Delivery))

    async def redeliver_all(self, *, dry_run: bool = False, **filters: Unpack[DeliveryFilters]) -> Changed:
        """Send all deliveries again that have ended and that the filters let through. However long it takes."""
        return await self._act_on("deliveries", "redeliver", filters, dry_run)

    async def call(self, method: str, *path: str, body: Any = None, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Any other call: the JSON that it answers. One that only reads is repeated like all others; ``path`` is what comes after /api/v1."""
        call = Call(method, path, body=body, params=params or {}, headers=headers or {}, safe=method in ("GET", "HEAD"))
        return await self.exchange.ask(call, JSON)

    async def close(self) -> None:
        """End all connections."""
        await self.exchange.wire.close()


def _keyed(*path: str, body: Mapping[str, Any], key: str | None) -> Call:
    # The key makes it safe to be sent twice (draft-ietf-httpapi-idempotency-key-header-07).
    return Call("POST", path, body=body, headers={"Idempotency-Key": key or str(uuid.uuid4())}, safe=True)


def _fields(chosen: Iterable[str] | None) -> dict[str, str]:
    """The parameter ``fields``: what was chosen, and what a Task can't be without. Without ``finished_at``, no task would have ``ended``."""
    if chosen is None:
        return {}
    needed = (name for name, field in Task.model_fields.items() if field.is_required())
    return {"fields": ",".join(dict.fromkeys([*needed, "finished_at", *chosen]))}


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}
