"""Queues: depths, pause and resume."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from taskyard import backlog, lifecycle

from .conftest import force, submit

pytestmark = pytest.mark.anyio


async def queues(client: AsyncClient) -> dict[str, dict[str, Any]]:
    return {queue["name"]: queue for queue in (await client.get("/queues")).json()["items"]}


async def test_a_queue_that_no_worker_serves_is_shown_with_its_tasks_and_without_workers(client: AsyncClient, engine: Engine) -> None:
    first, second = [await submit(client, queue="nobodys") for _ in range(2)]
    with engine.begin() as connection:
        lifecycle.register_worker(connection, UUID(int=1), "w1", ["default"], {})
    found = (await queues(client))["nobodys"]
    assert (found["pending"], found["queued"], found["workers"]) == (2, 0, [])
    shown = [(await client.get(f"/tasks/{task['id']}")).json() for task in (first, second)]
    assert [(task["status"], task["position"], task["estimated_start"]) for task in shown] == [("pending", 1, None), ("pending", 2, None)]


async def test_depths_are_told_for_each_known_queue(client: AsyncClient, engine: Engine) -> None:
    made = [await submit(client, queue="slow", priority=n) for n in range(4)]
    await submit(client, queue="slow", delay=60)
    force(engine, made[0]["id"], "running")
    force(engine, made[1]["id"], "queued")
    await client.post(f"/tasks/{made[2]['id']}/hold")
    with engine.begin() as connection:
        lifecycle.register_worker(connection, UUID(int=1), "w1", ["slow", "default"], {})
    found = await queues(client)
    assert list(found) == ["default", "io", "slow"]
    assert {name: found["slow"][name] for name in ("scheduled", "pending", "queued", "running", "held", "capped", "paused", "workers")} == {
        "scheduled": 1,
        "pending": 1,
        "queued": 1,
        "running": 1,
        "held": 1,
        "capped": False,
        "paused": False,
        "workers": ["w1"],
    }
    assert found["io"]["pending"] == 0


async def test_a_deep_backlog_is_counted_up_to_a_cap_and_says_so(client: AsyncClient, engine: Engine) -> None:
    running = await submit(client)
    with engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts)
                SELECT ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'anything', 'default', 'sync', 5, 'pending', '{}', 1, 1
                FROM generate_series(1, :n) AS n"""
            ),
            {"n": backlog.COUNT_LIMIT + 500},
        )
    force(engine, running["id"], "running")
    found = (await queues(client))["default"]
    assert (found["running"], found["pending"], found["capped"]) == (1, backlog.COUNT_LIMIT - 1, True)


async def test_a_paused_queue_stops_dispatch_and_resume_starts_it(client: AsyncClient, engine: Engine) -> None:
    await submit(client)
    paused = await client.post("/queues/default/pause")
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    assert (await queues(client))["default"]["paused"] is True
    with engine.begin() as connection:
        assert lifecycle.dispatch(connection, "default", "sync", 10, 60).hints == []
    resumed = await client.post("/queues/default/resume")
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    with engine.begin() as connection:
        assert len(lifecycle.dispatch(connection, "default", "sync", 10, 60).hints) == 1


async def test_pausing_twice_and_resuming_what_runs_is_no_error(client: AsyncClient) -> None:
    for verb in ("resume", "pause", "pause", "resume"):
        assert (await client.post(f"/queues/io/{verb}")).status_code == 200


@pytest.mark.parametrize("name", ["defualt", "%00", "x" * 500])
async def test_an_unknown_queue_is_a_404_with_the_nearest(client: AsyncClient, name: str) -> None:
    answer = await client.post(f"/queues/{name}/pause")
    assert answer.status_code == 404
    if name == "defualt":
        assert "'default'" in answer.json()["detail"]
