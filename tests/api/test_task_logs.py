"""A task's log over HTTP: in pages, by level, and live in the stream of its task alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from taskyard import tasklogs
from taskyard.logline import LEVELS

from .conftest import force, submit
from .test_live import reading, service  # noqa: F401  # a fixture, asked for by its name

pytestmark = pytest.mark.anyio


def log(engine: Engine, task: dict[str, Any], *messages: str, level: str = "info", dropped: int = 0) -> None:
    """Let the task's run have said this."""
    lines = [{"time": "2026-01-01T00:00:00Z", "level": level, "message": message, "fields": {"n": len(message)}} for message in messages]
    with engine.begin() as connection:
        written = tasklogs.write(connection, json.dumps([{"id": task["id"], "fence": 1, "dropped": dropped, "lines": lines}]))
        assert len(written) == 1


async def running(client: AsyncClient, engine: Engine) -> dict[str, Any]:
    task = await submit(client)
    force(engine, task["id"], "running")
    return task


async def test_a_tasks_lines_are_listed_oldest_first_in_pages(client: AsyncClient, engine: Engine) -> None:
    task = await running(client, engine)
    log(engine, task, "one", "two", "three", dropped=4)
    log(engine, await running(client, engine), "another task's")
    first = (await client.get(f"/tasks/{task['id']}/logs?limit=2")).json()
    assert [line["message"] for line in first["items"]] == ["one", "two"]
    assert first["dropped"] == 4
    line = first["items"][0]
    assert line == {"id": line["id"], "time": "2026-01-01T00:00:00Z", "level": "info", "message": "one", "fields": {"n": 3}, "attempt": 0, "fence": 1}
    last = (await client.get(f"/tasks/{task['id']}/logs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([line["message"] for line in last["items"]], last["next_cursor"]) == (["three"], None)


async def test_levels_choose_lines_and_a_cursor_belongs_to_them(client: AsyncClient, engine: Engine) -> None:
    task = await running(client, engine)
    for level in LEVELS:
        log(engine, task, level, level=level)
    page = (await client.get(f"/tasks/{task['id']}/logs?level=warning&level=error&limit=1")).json()
    assert [line["message"] for line in page["items"]] == ["warning"]
    wrong = await client.get(f"/tasks/{task['id']}/logs", params={"level": "error", "cursor": page["next_cursor"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/cursor")
    unknown = await client.get(f"/tasks/{task['id']}/logs?level=loud")
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/level/0")


async def test_a_task_that_has_said_nothing_has_an_empty_log_and_a_foreign_one_is_not_there(client: AsyncClient, engine: Engine) -> None:
    task = await running(client, engine)
    assert (await client.get(f"/tasks/{task['id']}/logs")).json() == {"items": [], "next_cursor": None, "dropped": 0}
    log(engine, task, "secret")
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    assert (await client.get(f"/tasks/{task['id']}/logs")).status_code == 404


async def test_the_stream_of_a_task_has_its_lines_live_and_resumes_without_gap_or_repeat(service: AsyncClient, engine: Engine) -> None:  # noqa: F811
    task, other = await running(service, engine), await running(service, engine)
    log(engine, task, "before")
    path = f"/tasks/{task['id']}/stream"
    async with reading(service, "/events") as every, reading(service, path) as stream:
        assert [(await stream.event())[0] for _ in range(2)] == ["task.submitted", "task.log"]
        log(engine, other, "not here")
        log(engine, task, "live", level="warning")
        live = await stream.message()
        assert live["event"] == "task.log"
        data = json.loads(live["data"])["data"]
        assert {name: data[name] for name in ("level", "message", "fields", "fence")} == {"level": "warning", "message": "live", "fields": {"n": 4}, "fence": 1}
        await service.post(f"/tasks/{task['id']}/cancel")
        assert (await stream.event())[0] == "task.cancel_requested"
        assert (await every.event()) == ("task.cancel_requested", task["id"]), "lines are told in the stream of their task alone"
    log(engine, task, *(f"missed {n}" for n in range(1200)))
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO events (task_id, namespace, type, attempt) VALUES (:id, 'default', 'task.cancelled', 0)"), {"id": task["id"]})
    force(engine, task["id"], "cancelled")
    async with reading(service, path, **{"Last-Event-ID": live["id"]}) as stream:
        assert (await stream.event())[0] == "task.cancel_requested"
        for n in range(1200):
            assert json.loads((await stream.message())["data"])["data"]["message"] == f"missed {n}"
        assert (await stream.event())[0] == "task.cancelled"
        assert await stream.message() == {}


async def test_many_streams_that_open_while_lines_are_written_hear_each_line_once(service: AsyncClient, engine: Engine) -> None:  # noqa: F811
    task = await running(service, engine)
    path = f"/tasks/{task['id']}/stream"
    last, seen = "0", list[str]()
    for n in range(40):
        log(engine, task, f"{n}a", f"{n}b")
        async with reading(service, path, **{"Last-Event-ID": last}) as stream:
            log(engine, task, f"{n}c")
            for _ in range(3 + (n == 0)):
                message = await stream.message()
                last = message["id"]
                if message["event"] == "task.log":
                    seen.append(json.loads(message["data"])["data"]["message"])
    assert seen == [f"{n}{letter}" for n in range(40) for letter in "abc"]
