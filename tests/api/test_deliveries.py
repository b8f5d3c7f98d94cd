"""Deliveries: sending again."""

from __future__ import annotations

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from taskyard import deliveries
from taskyard.settings import Settings

from .conftest import submit

pytestmark = pytest.mark.anyio


async def one(client: AsyncClient, engine: Engine, settings: Settings) -> str:
    """A task's only delivery, which is pending."""
    with engine.begin() as connection:
        deliveries.sync_routes(connection, settings.routes)
    await submit(client)
    (delivery,) = (await client.get("/deliveries")).json()["items"]
    return str(delivery["id"])


def bring_to(engine: Engine, status: str) -> None:
    """Every delivery to a status, by the verbs."""
    with engine.begin() as connection:
        due = [one.id for one in deliveries.dispatch(connection, 9, 60, 8)]
        claimed = deliveries.claim(connection, due, 60) if status != "queued" else []
        outcome = deliveries.Tried(claimed[0]["id"], claimed[0]["fence"], "dead" if status == "dead" else "delivered") if claimed else None
        if outcome and status != "sending":
            deliveries.finish(connection, [outcome], 8)


@pytest.mark.parametrize("status", ["dead", "delivered"])
async def test_what_has_ended_is_sent_again_with_fresh_attempts(client: AsyncClient, engine: Engine, api_settings: Settings, status: str) -> None:
    id_ = await one(client, engine, api_settings)
    bring_to(engine, status)
    answer = await client.post(f"/deliveries/{id_}/redeliver")
    assert answer.status_code == 200, answer.text
    again = answer.json()
    assert (again["id"], again["status"], again["attempt"], again["delivered_at"], len(again["tries"])) == (id_, "pending", 0, None, 1)
    assert again["next_try_at"] is not None
    assert (await client.get("/deliveries")).json()["items"] == [again]


@pytest.mark.parametrize("status", ["pending", "queued", "sending"])
async def test_what_is_on_its_way_is_not_sent_twice(client: AsyncClient, engine: Engine, api_settings: Settings, status: str) -> None:
    id_ = await one(client, engine, api_settings)
    if status != "pending":
        bring_to(engine, status)
    answer = await client.post(f"/deliveries/{id_}/redeliver")
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem["delivery_status"], problem["allowed"]) == (409, "urn:taskyard:problem:illegal-transition", status, [])
    assert problem["detail"] == f"A delivery that is {status} can't redeliver; it allows nothing more."
    assert (await client.get("/deliveries")).json()["items"][0]["status"] == status


@pytest.mark.parametrize("id_", ["999999", "0", "x", "1.5", "-1", "9" * 19, "9" * 40, "٣"])
async def test_what_is_not_there_is_not_found(client: AsyncClient, id_: str) -> None:
    answer = await client.post(f"/deliveries/{id_}/redeliver")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:taskyard:problem:not-found")


async def test_another_namespaces_delivery_is_not_there(client: AsyncClient, engine: Engine, api_settings: Settings) -> None:
    id_ = await one(client, engine, api_settings)
    bring_to(engine, "dead")
    with engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET namespace = 'foreign'"))
    assert (await client.post(f"/deliveries/{id_}/redeliver")).status_code == 404
