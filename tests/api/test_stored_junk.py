"""Whatever a row holds, no answer breaks: one task must not hide all others."""

from __future__ import annotations

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from .conftest import force, submit

pytestmark = pytest.mark.anyio

JUNK = {
    "error": ["5", '"x"', "[1]", '{"code": 5, "message": {"a": 1}}'],
    "progress": ["[1]", '{"fraction": "x", "message": 3}', '{"fraction": 1e400}', '"x"'],
    "result": ["1" * 5000, f"[{'9' * 5000}, 1]", "1e400"],
    "metadata": ["[1]", '"x"'],
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in JUNK.items() for value in values], ids=lambda v: v[:20])
async def test_a_row_with_junk_is_told_and_hides_no_other(client: AsyncClient, engine: Engine, column: str, value: str) -> None:
    junk, fine = [await submit(client) for _ in range(2)]
    force(engine, junk["id"], "failed")
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE tasks SET {column} = CAST(:value AS jsonb) WHERE id = :id"), {"value": value, "id": junk["id"]})
        connection.execute(text("UPDATE events SET data = CAST(:value AS jsonb) WHERE task_id = :id"), {"value": value, "id": junk["id"]})
    answer = await client.get("/tasks")
    assert answer.status_code == 200, answer.text
    assert [task["id"] for task in answer.json()["items"]] == [fine["id"], junk["id"]]
    assert answer.json()["items"][1][column] is not None or value == "1e400"
    assert (await client.get(f"/tasks/{junk['id']}")).status_code == 200
    events = await client.get(f"/tasks/{junk['id']}/events")
    assert events.status_code == 200, events.text


async def test_a_delivery_with_junk_is_told(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    with engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, tries)
                SELECT id, namespace, task_id, 'r', 'n', CAST(:tries AS jsonb) FROM events WHERE task_id = :id"""
            ),
            {"id": task["id"], "tries": '[5, {"attempt": 1, "time": "2026-01-01T00:00:00Z", "outcome": "failed", "detail": 7, "duration": "x"}]'},
        )
    answer = await client.get("/deliveries")
    assert answer.status_code == 200, answer.text
    assert [(t["detail"], t["duration"]) for t in answer.json()["items"][0]["tries"]] == [("7", None)]
