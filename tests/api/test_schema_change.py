"""A migration under a running service: plans that were cached before it are made anew, and no request notices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from tests.api.conftest import submit
from tests.api.test_live import reading
from tests.api.test_live import service as service
from tests.databases import cloned

pytestmark = [pytest.mark.anyio, pytest.mark.one_pair]

#: Numbers get another size: that changes what a statement answers, whether or not it names its columns.
WIDER = """
ALTER TABLE tasks ADD COLUMN added int, ALTER COLUMN attempt TYPE bigint, ALTER COLUMN version TYPE bigint, ALTER COLUMN max_attempts TYPE bigint;
ALTER TABLE events ADD COLUMN added int, ALTER COLUMN attempt TYPE bigint;
ALTER TABLE deliveries ADD COLUMN added int, ALTER COLUMN attempt TYPE bigint;
"""
NARROWER = WIDER.replace("ADD COLUMN added int", "DROP COLUMN added").replace("bigint", "int")


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """Of this module's own: its tables are altered."""
    with cloned(postgres_url, template) as url:
        yield url


async def _every_use(client: AsyncClient) -> list[int]:
    """Statuses of calls that read, write, commit in a group, wait and act, several at once so that each connection of the pool has its plans."""
    task = (await submit(client))["id"]

    async def one_of_each(number: int) -> list[Any]:
        unique = {"type": "anything", "payload": 1, "unique_key": f"{task}-{number}"}
        mine = (await submit(client))["id"]
        return [
            await client.post("/tasks", json=unique),
            await client.post("/tasks", json=unique, headers={"Idempotency-Key": f"{task}-{number}"}),
            await client.post("/tasks/batch", json={"tasks": [{"type": "anything", "payload": 1}] * 3}),
            await client.get("/tasks"),
            await client.get(f"/tasks/{task}"),
            await client.get(f"/tasks/{mine}", headers={"Prefer": "wait=1"}),
            await client.get(f"/tasks/{task}/events"),
            await client.get("/deliveries"),
            await client.get("/queues"),
            await client.patch(f"/tasks/{mine}", json={"priority": number}),
            await client.post(f"/tasks/{mine}/hold"),
            await client.post(f"/tasks/{mine}/release"),
            await client.post("/tasks/actions", json={"action": "cancel", "filter": {"q": mine}}),
            await client.post(f"/tasks/{mine}/retry"),
        ]

    answers = await asyncio.gather(*map(one_of_each, range(4)))
    return [answer.status_code for several in answers for answer in several]


async def test_no_request_notices_that_tables_are_altered_under_a_running_service(service: AsyncClient, engine: Engine) -> None:
    usual = await _every_use(service)
    assert max(usual) < 500
    assert await _every_use(service) == usual
    for change in (WIDER, NARROWER):
        with engine.begin() as connection:
            connection.execute(text(change))
        with capture_logs() as lines:
            assert await _every_use(service) == usual
        assert "transaction.repeated" in {line["event"] for line in lines}, "no plan was stale: this proves nothing"


async def test_a_live_stream_goes_on_over_a_change_of_the_schema(service: AsyncClient, engine: Engine) -> None:
    async with reading(service, "/events") as stream:
        for change in ("", WIDER, NARROWER):
            if change:
                with engine.begin() as connection:
                    connection.execute(text(change))
            for _ in range(3):
                task = await submit(service)
                assert await stream.event() == ("task.submitted", task["id"])
