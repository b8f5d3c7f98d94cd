"""Who submits to a queue that no worker serves is told so, at no cost to the submission."""

from __future__ import annotations

from uuid import uuid4

import anyio
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine

from taskyard import lifecycle
from taskyard_api.served import Served

from .conftest import submit

pytestmark = pytest.mark.anyio


def serve(engine: Engine, *queues: str) -> None:
    with engine.begin() as connection:
        lifecycle.register_worker(connection, uuid4(), "w", queues, {})


async def known(app: FastAPI) -> Served:
    """What the service knows of its queues, once that is up to date."""
    served: Served = app.state.service.served
    served._until = 0.0
    served.warning([])
    assert served._looking is not None
    await served._looking
    return served


async def test_a_submission_to_a_queue_that_nobody_serves_is_answered_with_a_warning(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    serve(engine, "default", "io")
    await known(app)
    fine = await client.post("/tasks", json={"type": "anything", "payload": 1})
    assert "Taskyard-Warning" not in fine.headers
    lost = await client.post("/tasks", json={"type": "anything", "payload": 1, "queue": "reports"})
    assert (lost.status_code, lost.headers["Taskyard-Warning"]) == (201, "no live worker serves the queue reports")
    tasks = [{"type": "anything", "payload": 1, "queue": queue} for queue in ("x2", "io", "x1", "x2")]
    many = await client.post("/tasks/batch", json={"tasks": tasks})
    assert many.headers["Taskyard-Warning"] == "no live worker serves the queues x1, x2"
    checked = [await client.post("/tasks/validate", json=tasks[0]), await client.post("/tasks/batch/validate", json={"tasks": tasks[:2]})]
    assert [answer.headers["Taskyard-Warning"] for answer in checked] == ["no live worker serves the queue x2"] * 2, "nothing is submitted, but it would wait"
    serve(engine, "reports")
    await known(app)
    assert "Taskyard-Warning" not in (await client.post("/tasks", json={"type": "anything", "payload": 1, "queue": "reports"})).headers


async def test_nobody_is_warned_before_it_is_known_and_no_submission_waits_for_it(app: FastAPI, client: AsyncClient) -> None:
    asked: list[None] = []
    answered = anyio.Event()

    async def look() -> frozenset[str]:
        asked.append(None)
        await answered.wait()
        return frozenset()

    service = app.state.service
    await service.served.close()
    service.served = Served(look)
    for _ in range(5):
        assert await submit(client)
    assert len(asked) == 1
    assert service.served.warning(["default"]) is None
    answered.set()
    assert service.served._looking is not None
    await service.served._looking
    assert service.served.warning(["default"]) == "no live worker serves the queue default"
    assert service.served.warning(f"q{n}" for n in range(9)) == "no live worker serves the queues q0, q1, q2, q3, q4 and others"
