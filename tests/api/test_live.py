"""Live streams over a real connection: nothing left out, nothing twice, and nobody held up by who does not read."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
import uuid_utils.compat as uuid7
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Connection, Engine, text

from taskyard import feed, keys, lifecycle
from taskyard.plugins import Registry
from taskyard.queries import TaskFilters
from taskyard.records import Finished, NewTask
from taskyard.settings import ApiSettings, AuthSettings, Settings
from taskyard_api import access, command, live, sse
from taskyard_api.app import create_app
from taskyard_api.live import BEHIND, Listener, Told, TooSlow
from tests.api.conftest import submit

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(app: FastAPI, trusted_proxies: Sequence[str] = ()) -> AsyncIterator[str]:
    """The address of a service on a port of its own. Its end waits for no stream."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = command.server_of(app, trusted_proxies=trusted_proxies)
        serving = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1"
        server.should_exit = True
        await asyncio.wait_for(serving, 60)


@pytest.fixture
async def service(api_settings: Settings, registry: Registry) -> AsyncIterator[AsyncClient]:
    async with served(create_app(api_settings, registry)) as url, AsyncClient(base_url=url, timeout=60) as client:
        yield client


class Stream:
    """A reader of one stream."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def message(self) -> dict[str, str]:
        """The next message that is no comment; {} at the end."""
        found: dict[str, str] = {}
        async for line in self._lines:
            if not line and found:
                return found
            name, _, value = line.partition(": ")
            if name and name != "retry":
                found[name] = value
        return {}

    async def event(self) -> tuple[str, str]:
        """(type, task) of the next event."""
        found = await asyncio.wait_for(self.message(), 60)
        data = json.loads(found["data"])
        assert data["type"] == found["event"]
        assert data["id"] == f"evt_{found['id']}"
        return found["event"], data["subject"]


@asynccontextmanager
async def reading(client: AsyncClient, path: str, **headers: str) -> AsyncIterator[Stream]:
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        yield Stream(lines)


async def test_what_happens_is_told_as_it_happens_to_those_who_want_it(service: AsyncClient) -> None:
    async with reading(service, "/events") as every, reading(service, "/events?tag=told&type=anything") as some:
        other = await submit(service)
        told = await submit(service, tags=["told"])
        assert [await every.event(), await every.event()] == [("task.submitted", other["id"]), ("task.submitted", told["id"])]
        assert await some.event() == ("task.submitted", told["id"])
        await service.post(f"/tasks/{told['id']}/cancel")
        assert await some.event() == await every.event() == ("task.cancelled", told["id"])


async def test_a_stream_goes_on_where_it_ended(service: AsyncClient) -> None:
    tasks = [await submit(service) for _ in range(5)]
    async with reading(service, "/events", **{"Last-Event-ID": "0"}) as stream:
        seen = [await stream.message() for _ in range(3)]
    assert [json.loads(one["data"])["subject"] for one in seen] == [task["id"] for task in tasks[:3]]
    async with reading(service, "/events", **{"Last-Event-ID": seen[-1]["id"]}) as stream:
        later = await submit(service)
        assert [(await stream.event())[1] for _ in range(3)] == [task["id"] for task in [*tasks[3:], later]]


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5", "9" * 18, "9" * 19, "9" * 90, "evt_1"])
async def test_a_wrong_last_event_id_is_refused_with_its_place(service: AsyncClient, wrong: str) -> None:
    for path in ("/events", f"/tasks/{(await submit(service))['id']}/stream"):
        answer = await service.get(path, headers={"Last-Event-ID": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/Last-Event-ID")


async def test_filters_are_those_of_the_list(service: AsyncClient, engine: Engine) -> None:
    made = [await submit(service, tags=tags, priority=priority, queue=queue) for tags, priority, queue in [(["a"], 1, "q1"), (["ab"], 2, "q2"), ([], 3, "q1")]]
    await service.post(f"/tasks/{made[2]['id']}/hold")
    for query in (
        "",
        "?tag=a",
        "?tag=a&tag=ab",
        "?priority=2",
        "?queue=q1",
        "?queue=q1&status=held",
        f"?q={made[1]['id'][:-1]}",
        "?q=ab",
        "?q=any",
        "?type=other",
    ):
        listed = {task["id"] for task in (await service.get(f"/tasks{query}")).json()["items"]}
        async with reading(service, f"/events{query}", **{"Last-Event-ID": "0"}) as stream:
            seen = {(await stream.event())[1] for _ in range(len(listed))}
        assert seen == listed, query
    assert (await service.get("/events?colour=red")).status_code == 422


async def test_a_task_is_followed_to_its_end_and_no_further(service: AsyncClient, engine: Engine) -> None:
    task = await submit(service, tags=["told"])
    async with reading(service, f"/tasks/{task['id']}/stream") as stream:
        assert await stream.event() == ("task.submitted", task["id"])
        await submit(service)
        await service.post(f"/tasks/{task['id']}/cancel")
        last = await stream.message()
        assert last["event"] == "task.cancelled"
        assert await stream.message() == {}
    assert (await service.get(f"/tasks/{task['id']}/stream", headers={"Last-Event-ID": last["id"]})).status_code == 204
    await service.post(f"/tasks/{task['id']}/retry")
    async with reading(service, f"/tasks/{task['id']}/stream") as stream:
        assert [(await stream.event())[0] for _ in range(3)] == ["task.submitted", "task.cancelled", "task.retrying"]
    assert (await service.get(f"/tasks/{uuid4()}/stream")).status_code == 404


async def test_a_success_tells_its_result_and_unnamed_messages_reach_onmessage(service: AsyncClient, engine: Engine) -> None:
    task = await submit(service)
    worker = uuid7.uuid7()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["default"], {})
        lifecycle.dispatch(connection, "default", "sync", 10, 60)
        (row,) = lifecycle.claim(connection, worker, "default", "sync", [UUID(task["id"])], ["anything"], 1)
        lifecycle.finish(connection, [Finished(row["id"], row["fence"], "succeeded", result='{"pages": [1, null]}')], 3)
    async with reading(service, f"/tasks/{task['id']}/stream") as named, reading(service, f"/tasks/{task['id']}/stream?named=false") as unnamed:
        told = [(await named.message(), await unnamed.message()) for _ in range(3)]
        assert await named.message() == await unnamed.message() == {}
    for one, other in told:
        assert one == {**other, "event": json.loads(other["data"])["type"]}
    assert "event" not in told[0][1]
    assert json.loads(told[-1][0]["data"])["data"]["result"] == {"pages": [1, None]}
    async with reading(service, "/events?named=false&type=anything", **{"Last-Event-ID": "0"}) as every:
        assert set(await every.message()) == {"id", "data"}
    assert (await service.get("/events?named=perhaps")).json()["errors"][0]["pointer"] == "/named"


def submitted(engine: Engine) -> UUID:
    """A task in the database, by the verb itself."""
    task = NewTask(uuid7.uuid7(), "anything", None, "default", "sync", 5, 60.0, 1)
    with engine.begin() as connection:
        lifecycle.submit(connection, [task])
    return task.id


def write(connection: Connection, task: UUID) -> int:
    """One more event of a task."""
    statement = text("INSERT INTO events (task_id, namespace, type, attempt) VALUES (:task, 'default', 'task.updated', 0) RETURNING id")
    return int(connection.execute(statement, {"task": task}).scalar_one())


async def test_an_event_that_is_committed_late_is_told_first(service: AsyncClient, engine: Engine) -> None:
    task = UUID((await submit(service))["id"])
    async with reading(service, "/events") as stream:
        with engine.connect() as late:
            first = write(late, task)
            with engine.begin() as early:
                second = write(early, task)
            hearing = asyncio.create_task(stream.message())
            await asyncio.wait({hearing}, timeout=1.0)
            assert not hearing.done(), "the first is still on its way"
            late.commit()
        assert (await hearing)["id"] == str(first)
        assert (await stream.message())["id"] == str(second)
        with engine.connect() as undone:
            write(undone, task)
            undone.rollback()
        with engine.begin() as after:
            third = write(after, task)
        assert (await stream.message())["id"] == str(third)


async def test_ten_thousand_events_reach_a_reader_that_reconnects_at_random_each_once(service: AsyncClient, engine: Engine) -> None:
    task = UUID((await submit(service))["id"])
    written: list[int] = []
    threads = [threading.Thread(target=_write_many, args=(engine, task, 2_500, seed, written)) for seed in range(4)]
    last, seen, chance = "0", list[int](), random.Random(5)
    for thread in threads:
        thread.start()
    while len(seen) < 10_001:
        async with reading(service, "/events", **{"Last-Event-ID": last}) as stream:
            for _ in range(min(chance.randrange(1, 800), 10_001 - len(seen))):
                message = await asyncio.wait_for(stream.message(), 60)
                last = message["id"]
                seen.append(int(last))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(written) == 10_000
    assert seen[1:] == sorted(written)


def _write_many(engine: Engine, task: UUID, count: int, seed: int, written: list[int]) -> None:
    """Transactions of some events each, that stay open for a moment, and of which some are rolled back."""
    chance = random.Random(seed)
    left = count
    while left:
        with engine.connect() as connection:
            ids = [write(connection, task) for _ in range(min(left, chance.randrange(1, 60)))]
            if chance.random() < 0.1:
                connection.rollback()
                continue
            connection.commit()
        written += ids
        left -= len(ids)


async def test_who_does_not_read_is_dropped_and_remembers_nothing(service: AsyncClient, engine: Engine) -> None:
    with engine.connect() as connection:
        task = UUID((await submit(service))["id"])
        write(connection, task)
        connection.commit()
        row = feed.events(connection, 0, 2**40, 1)[0]
    listener = Listener(lambda _: True)
    listener.last = 0
    told = [Told(row)] * 100
    for _ in range(BEHIND // 100):
        listener.hear(told)
    assert len(await listener.heard(1)) == BEHIND
    for _ in range(BEHIND // 100 + 1):
        listener.hear(told)
    assert not listener._told
    with pytest.raises(TooSlow, match="Last-Event-ID"):
        await listener.heard(1)


async def test_a_client_that_takes_nothing_for_too_long_is_let_go(
    api_settings: Settings, registry: Registry, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "PATIENCE", 0.2)
    app = create_app(api_settings, registry)
    async with served(app) as url, AsyncClient(base_url=url) as client:
        task = await submit(client, metadata={"filler": "x"})
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            listeners = app.state.service.feed._listeners
            while not any(listener.last is not None for listener in listeners):  # noqa: ASYNC110  # the service sets no event of ours
                await asyncio.sleep(0.01)
            statement = text(
                """INSERT INTO events (task_id, namespace, type, attempt, data)
                SELECT :task, 'default', 'task.updated', 0, jsonb_build_object('filler', repeat('x', 20000)) FROM generate_series(1, 1000)"""
            )
            with engine.begin() as connection:
                connection.execute(statement, {"task": task["id"]})
            while listeners:  # noqa: ASYNC110  # likewise
                await asyncio.sleep(0.01)
            # Not only forgotten: its connection is cut, though it has taken nothing of what was sent.
            deaf.settimeout(60)
            got, part = b"", b"-"
            with suppress(ConnectionResetError):
                while part := await asyncio.to_thread(deaf.recv, 1_000_000):
                    got = (got + part)[-100:]
            assert not got.endswith(b"0\r\n\r\n")


async def test_a_stream_ends_with_its_key(api_settings: Settings, registry: Registry, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT", 0.2)
    monkeypatch.setattr(access, "FRESH", 0.0)
    task = submitted(engine)
    with engine.begin() as connection:
        key = keys.create(connection, "reader", scopes=("tasks:read",)).secret
    app = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with served(app) as url, AsyncClient(base_url=url, headers={"X-API-Key": key}) as client, reading(client, "/events") as stream:
        with engine.begin() as connection:
            keys.revoke(connection, "reader")
        # A stream that is never silent ends as well.
        last = {"event": ""}
        while last["event"] != "error":
            with engine.begin() as connection:
                write(connection, task)
            last = await asyncio.wait_for(stream.message(), 60)
        assert "revoked" in last["data"]
        assert await stream.message() == {}


async def test_who_asks_for_the_headers_alone_gets_them_and_no_more(service: AsyncClient) -> None:
    task = await submit(service)
    for path in ("/events", f"/tasks/{task['id']}/stream"):
        answer = await asyncio.wait_for(service.head(path), 60)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert (await asyncio.wait_for(service.get("/tasks"), 60)).status_code == 200


async def test_streams_are_bounded_and_end_when_the_service_stops(api_settings: Settings, registry: Registry) -> None:
    app = create_app(api_settings.model_copy(update={"api": ApiSettings(max_streams=1)}), registry)
    async with AsyncClient(timeout=60) as client:
        async with served(app) as url:
            stream = reading(client, f"{url}/events")
            held = await stream.__aenter__()
            refused = await client.get(f"{url}/events")
            assert (refused.status_code, refused.json()["type"]) == (429, "urn:taskyard:problem:rate-limited")
        assert await held.message() == {}
        await stream.__aexit__(None, None, None)


def test_python_and_postgres_agree_on_what_a_filter_lets_through() -> None:
    row: dict[str, Any] = {
        "event": "task.held",
        "namespace": "a",
        "type": "t.x",
        "status": "held",
        "queue": "q",
        "tags": ["one"],
        "priority": 5,
        "task_id": UUID(int=1),
        "parent_id": UUID(int=2),
    }

    def wanted(**filters: Any) -> bool:
        return feed.is_wanted(row, "a", TaskFilters(**filters))  # type: ignore[arg-type]  # a plain mapping will do

    assert wanted()
    assert not feed.is_wanted(row, "b", TaskFilters())  # type: ignore[arg-type]  # likewise
    assert wanted(q="00000000-0000")
    assert not wanted(q="1")
    assert not wanted(q="one ")
    assert not wanted(q="-")
    assert wanted(parent_id=UUID(int=2))
    assert not wanted(parent_id=UUID(int=1))
    assert wanted(priority=5)
    assert not wanted(priority=0)
