"""How lifespans start, fail and end inside a child process, without one: each kind alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from taskyard import Handler, LifespanFailed, handler
from taskyard.lifespans import Lifespan, read_lifespans
from taskyard.settings import DispatchSettings, Settings, WorkerSettings
from taskyard_worker.resources import AsyncResources, SyncResources


class Thing:
    """A resource."""


@handler("l.loop")
async def in_loop(payload: None, thing: Thing) -> Any:
    """Give it back."""
    return thing


@handler("l.process")
def in_process(payload: None, thing: Thing) -> Any:
    """Give it back."""
    return thing


class OneCall:
    """A call as the resources see it."""

    def __init__(self, handler: Handler[Any, Any]) -> None:
        self.handler = handler.owned_by("one")
        self.late = 0.0

    def begin_later(self, seconds: float) -> None:
        self.late += seconds


class OnePlugin:
    """A registry of one plugin, with one lifespan."""

    def __init__(self, lifespan: Callable[..., Any]) -> None:
        self.lifespans: list[Lifespan] = read_lifespans("one", lifespan, None)

    def lifespans_of(self, _: Handler[Any, Any]) -> list[Lifespan]:
        return self.lifespans

    def config_of(self, _: Handler[Any, Any]) -> None:
        return None


def _made(kind: Any, lifespan: Callable[..., Any], said: list[dict[str, Any]], *, start: float = 60, pause: float = 60) -> Any:
    settings = Settings(worker=WorkerSettings(lifespan_timeout=start), dispatch=DispatchSettings(park_delay=pause))
    return kind(settings, OnePlugin(lifespan), said.append)


def test_a_sync_lifespan_that_hangs_is_ended_and_not_tried_again_at_once() -> None:
    starts: list[str] = []

    def hangs() -> Iterator[Thing]:
        starts.append("start")
        threading.Event().wait()
        yield Thing()

    said: list[dict[str, Any]] = []
    resources = _made(SyncResources, hangs, said, start=0.2)
    for _ in range(2):
        with pytest.raises(LifespanFailed, match=r"had not started after 0\.2 s \(worker\.lifespan_timeout\); it stood at .*threading\.py"):
            resources.bind(OneCall(in_process), 1)
    assert starts == ["start"]
    assert [sorted(message) for message in said] == [["begins", "key"], ["plugin", "problem"]]


def test_a_sync_lifespan_that_has_failed_is_started_after_the_pause_and_the_engine_hears_of_both() -> None:
    starts: list[str] = []

    def fails_once() -> Iterator[Thing]:
        starts.append("start")
        if len(starts) == 1:
            raise SystemExit(1)
        yield Thing()

    said: list[dict[str, Any]] = []
    resources = _made(SyncResources, fails_once, said, pause=1e-9)
    with pytest.raises(LifespanFailed, match="SystemExit: 1"):
        resources.bind(OneCall(in_process), 1)
    call = OneCall(in_process)
    resources.bind(call, 2)
    assert resources.took_time
    assert isinstance(call.handler(None), Thing)
    again = OneCall(in_process)
    resources.bind(again, 3)
    assert (again.handler(None) is call.handler(None), resources.took_time, len(starts)) == (True, False, 2)
    assert [message["problem"] for message in said if "problem" in message][1:] == [None]
    assert said[-1] == {"key": 2, "begins": 0}


def test_an_async_handler_in_a_sync_process_has_a_loop_and_resources_of_its_own_call() -> None:
    events: list[str] = []

    async def of_a_loop() -> AsyncIterator[Thing]:
        events.append("begin")
        yield Thing()
        events.append("end")

    call = OneCall(in_loop)
    _made(SyncResources, of_a_loop, []).bind(call, 1)
    assert isinstance(asyncio.run(call.handler(None)), Thing)
    assert events == ["begin", "end"]


def test_those_who_wait_for_one_async_start_share_it_and_one_who_leaves_does_not_end_it() -> None:
    async def run() -> None:
        opened, events = asyncio.Event(), []

        async def gated() -> AsyncIterator[Thing]:
            events.append("begin")
            await opened.wait()
            async with asyncio.TaskGroup():
                yield Thing()
            events.append("end")

        resources = _made(AsyncResources, gated, [])
        calls = [OneCall(in_loop) for _ in range(3)]
        binding = [asyncio.create_task(resources.bind(call, key)) for key, call in enumerate(calls)]
        await asyncio.sleep(0)
        binding[0].cancel()
        opened.set()
        ended = await asyncio.gather(*binding, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError)
        assert await calls[1].handler(None) is await calls[2].handler(None)
        assert resources.are_bound(OneCall(in_loop))
        await resources.close()
        assert events == ["begin", "end"]

    asyncio.run(run())


@pytest.mark.parametrize("is_async", [True, False])
def test_a_start_beside_an_event_loop_that_hangs_is_given_up(is_async: bool) -> None:
    async def run() -> None:
        released, left = threading.Event(), threading.Event()

        async def hangs() -> AsyncIterator[Thing]:
            await asyncio.Event().wait()
            yield Thing()

        def hangs_in_a_thread() -> Iterator[Thing]:
            released.wait()
            yield Thing()
            left.set()

        resources = _made(AsyncResources, hangs if is_async else hangs_in_a_thread, [], start=0.1)
        with pytest.raises(LifespanFailed, match=r"had not started after 0\.1 s"):
            await resources.bind(OneCall(in_loop), 1)
        released.set()
        # What was made after all is ended: nobody will use it.
        assert is_async or await asyncio.to_thread(left.wait, 60)

    asyncio.run(run())


def test_an_async_lifespan_that_ends_while_tasks_run_is_started_again_for_the_next_one() -> None:
    async def run() -> None:
        crash: list[asyncio.Event] = []

        async def with_a_background_task() -> AsyncIterator[Thing]:
            crash.append(asyncio.Event())

            async def crashes(when: asyncio.Event) -> None:
                await when.wait()
                raise ConnectionError("the other side is gone")

            async with asyncio.TaskGroup() as group:
                group.create_task(crashes(crash[-1]))
                yield Thing()

        resources = _made(AsyncResources, with_a_background_task, [])
        first, second = OneCall(in_loop), OneCall(in_loop)
        await resources.bind(first, 1)
        crash[0].set()
        while resources.are_bound(OneCall(in_loop)):  # noqa: ASYNC110  # it tells nobody when it has noticed
            await asyncio.sleep(0)
        await resources.bind(second, 2)
        assert len(crash) == 2
        assert await first.handler(None) is not await second.handler(None)

    asyncio.run(run())
