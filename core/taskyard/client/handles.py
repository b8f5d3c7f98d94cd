"""A task in the hands of who submitted it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import ValidationError

from taskyard.client.bridge import Awaiting, Blocking, Caller, operation, streaming
from taskyard.client.core import Core
from taskyard.client.errors import TaskUnsuccessful, UnexpectedAnswer
from taskyard.client.models import Event, Task
from taskyard.handlers import Handler

R = TypeVar("R")


class HandleCalls(Caller, Generic[R]):
    """What can be done with a task of which one knows what it results in."""

    def __init__(self, core: Core, task: Task, handler: Handler[Any, R] | None = None, *, replayed: bool = False, warning: str | None = None) -> None:
        self._core = core
        self._handler = handler
        #: The task as it was when it was last looked at.
        self.task = task
        #: It was there before: an earlier submission with the same Idempotency-Key had made it.
        self.replayed = replayed
        #: What the service said beside its answer: that no live worker serves the queue, or that of another task of the batch.
        self.warning = warning

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task.type} {self.task.id} {self.task.status}>"

    @property
    def id(self) -> UUID:
        """The task's id."""
        return self.task.id

    @operation
    async def result(self, *, timeout: float | None = None) -> R:
        """What the task results in, once it has ended. ``timeout`` is in seconds; None waits for as long as it takes.

        Raises:
            TaskUnsuccessful: it has failed, was cancelled or has expired.
            WaitTimeout: it has not ended by then.
            UnexpectedAnswer: its result is not of the handler's type as this program knows it.
        """
        self.task = await self._core.wait(self.id, timeout=timeout)
        if self.task.status != "succeeded":
            raise TaskUnsuccessful(self.task)
        return self._typed(self.task.result)

    @operation
    async def wait(self, *, timeout: float | None = None) -> Task:
        """The task, once it has ended, however it did. Raises WaitTimeout: it has not by then."""
        self.task = await self._core.wait(self.id, timeout=timeout)
        return self.task

    @operation
    async def refresh(self) -> Task:
        """The task as it is now."""
        self.task = await self._core.get(self.id)
        return self.task

    @streaming
    async def follow(self, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Its events as they happen, until it has ended; progress too."""
        async with aclosing(self._core.follow(self.id, after=after)) as events:
            async for event in events:
                yield event

    @operation
    async def cancel(self) -> Task:
        """Cancel it; if it runs, it is asked to stop."""
        self.task = await self._core.cancel(self.id)
        return self.task

    @operation
    async def retry(self) -> Task:
        """Run it again, if it failed, expired or was cancelled."""
        self.task = await self._core.retry(self.id)
        return self.task

    @operation
    async def hold(self) -> Task:
        """Take it out of line."""
        self.task = await self._core.hold(self.id)
        return self.task

    @operation
    async def release(self) -> Task:
        """Put it back in line."""
        self.task = await self._core.release(self.id)
        return self.task

    def _typed(self, result: Any) -> R:
        if self._handler is None:
            untyped: R = result
            return untyped
        try:
            # As JSON: strict models take a time or a UUID as text only from there.
            return self._handler.result.validate_json(json.dumps(result))
        except ValidationError as error:
            raise UnexpectedAnswer(f"The result of the task {self.id} is not what {self.task.type} results in here: {error}") from error


class Handle(HandleCalls[R], Blocking):
    """A submitted task, in a program that blocks."""


class AsyncHandle(HandleCalls[R], Awaiting):
    """A submitted task, in a program that awaits."""
