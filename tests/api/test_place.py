"""A waiting task's place in line, and when it may start."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from taskyard import lifecycle, place

from .conftest import force, submit

pytestmark = pytest.mark.anyio


async def placed(client: AsyncClient, task: dict[str, Any]) -> dict[str, Any]:
    answer = await client.get(f"/tasks/{task['id']}")
    assert answer.status_code == 200, answer.text
    return {name: answer.json()[name] for name in ("position", "estimated_start")}


def crew(engine: Engine, slots: int, pace: dict[str, float], number: int = 1) -> None:
    with engine.begin() as connection:
        lifecycle.register_worker(connection, UUID(int=number), "w", ["default"], {"sync": slots})
        lifecycle.beat(connection, UUID(int=number), pace)


async def test_the_place_is_by_priority_and_then_by_age_among_those_who_wait_in_the_same_line(client: AsyncClient, engine: Engine) -> None:
    runs, first, low, second, urgent = [await submit(client, priority=priority) for priority in (9, 5, 1, 5, 9)]
    elsewhere = await submit(client, queue="elsewhere", priority=9)
    force(engine, runs["id"], "running")
    force(engine, first["id"], "queued")
    found = [(await placed(client, task))["position"] for task in (urgent, first, second, low, elsewhere, runs)]
    assert found == [1, 2, 3, 4, 1, None]


async def test_what_is_not_in_line_has_no_position_and_a_planned_start_if_it_has_one(client: AsyncClient, engine: Engine) -> None:
    held = await submit(client)
    await client.post(f"/tasks/{held['id']}/hold")
    ended = await submit(client)
    force(engine, ended["id"], "succeeded")
    nowhere = {"position": None, "estimated_start": None}
    assert [await placed(client, task) for task in (held, ended)] == [nowhere, nowhere]
    planned = await submit(client, run_at="2030-01-01T00:00:00Z")
    assert await placed(client, planned) == nowhere | {"estimated_start": "2030-01-01T00:00:00Z"}


async def test_the_estimate_is_by_the_pace_and_the_slots_of_the_workers_that_live(client: AsyncClient, engine: Engine) -> None:
    tasks = [await submit(client) for _ in range(40)]
    assert (await placed(client, tasks[-1]))["estimated_start"] is None, "nobody works here"
    crew(engine, 3, {"anything": 30.0, "other": 1.0}, 1)
    crew(engine, 1, {"anything": 30.0}, 2)
    with engine.connect() as connection:
        before = connection.execute(text("SELECT now()")).scalar_one()
    start = datetime.fromisoformat((await placed(client, tasks[-1]))["estimated_start"])
    assert 500 <= (start - before).total_seconds() < 560, "40 tasks of 30 s on 4 slots are 300 s: the next coarse step"
    with engine.begin() as connection:
        connection.execute(text("UPDATE workers SET beat_at = now() - interval '1 hour'"))
    assert (await placed(client, tasks[-1]))["estimated_start"] is None


async def test_a_paused_queue_has_places_and_no_estimate(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    crew(engine, 1, {"other": 2.0})
    assert (await placed(client, task))["estimated_start"] is not None, "a type that is not known yet is taken for like the others"
    await client.post("/queues/default/pause")
    assert await placed(client, task) == {"position": 1, "estimated_start": None}


async def test_counting_stops_and_says_so(client: AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "COUNT_LIMIT", 5)
    tasks = [await submit(client) for _ in range(8)]
    crew(engine, 1, {"anything": 1.0})
    assert (await placed(client, tasks[4]))["position"] == 5
    assert await placed(client, tasks[7]) == {"position": 5, "estimated_start": None}


async def test_a_task_that_waits_is_never_as_its_client_knows_it_and_one_that_does_not_is(client: AsyncClient, engine: Engine) -> None:
    other, task = await submit(client), await submit(client)
    headers = {"If-None-Match": '"1"'}
    first = await client.get(f"/tasks/{task['id']}", headers=headers)
    force(engine, other["id"], "succeeded")
    second = await client.get(f"/tasks/{task['id']}", headers=headers)
    assert [(seen.status_code, seen.headers["ETag"], seen.json()["position"]) for seen in (first, second)] == [(200, '"1"', 2), (200, '"1"', 1)]
    assert (await client.get(f"/tasks/{other['id']}", headers=headers)).status_code == 304


async def test_whoever_waited_in_vain_learns_the_place_too(client: AsyncClient) -> None:
    task = await submit(client)
    answer = await client.get(f"/tasks/{task['id']}", headers={"Prefer": "wait=0"})
    assert (answer.json()["position"], answer.headers["Preference-Applied"]) == (1, "wait=0")


async def test_lists_and_submissions_do_not_count(client: AsyncClient) -> None:
    task = await submit(client)
    (listed,) = (await client.get("/tasks")).json()["items"]
    for shown in (task, listed):
        assert (shown["position"], shown["estimated_start"]) == (None, None)


async def test_what_other_namespaces_have_in_line_is_not_counted(client: AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "COUNT_LIMIT", 10)
    theirs = [await submit(client, priority=9) for _ in range(6)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    first, second = [await submit(client) for _ in range(2)]
    for task, position in ((first, 1), (second, 2)):
        answer = (await client.get(f"/tasks/{task['id']}/place")).json()
        assert answer == {"position": position, "capped": False, "estimated_start": None}
    theirs += [await submit(client, priority=9) for _ in range(6)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs' WHERE priority = 9"))
    assert (await client.get(f"/tasks/{second['id']}/place")).json() == {"position": 1, "capped": True, "estimated_start": None}, "ten stand before it"


def test_an_estimate_is_too_coarse_to_count_by() -> None:
    assert [place.coarse(seconds) for seconds in (0.0, 0.3, 1.0, 1.1, 2.1, 5.1, 99.0, 300.0, 86_400.0)] == [1, 1, 1, 2, 5, 10, 100, 500, 100_000]


async def test_the_place_alone_says_the_same_and_whether_counting_stopped(client: AsyncClient, engine: Engine) -> None:
    tasks = [await submit(client) for _ in range(2)]
    assert (await client.get(f"/tasks/{tasks[1]['id']}/place")).json() == {"position": 2, "capped": False, "estimated_start": None}
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    assert (await client.get(f"/tasks/{tasks[0]['id']}/place")).status_code == 404
