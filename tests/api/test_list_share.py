"""Lists and actions have a share of the pool and a time limit: however slow they are, submissions find a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from httpx2 import AsyncClient
from pydantic import SecretStr

from taskyard.errors import Unavailable
from taskyard.settings import ApiSettings, DatabaseSettings, Settings
from taskyard_api import bulk
from taskyard_api.lists import Lists
from taskyard_api.routes import actions, deliveries
from tests.api.conftest import submit

pytestmark = [pytest.mark.anyio, pytest.mark.one_pair]
MANY = 40


@pytest.fixture
def api_settings(database_url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=SecretStr(database_url), pool_size=4), api=ApiSettings(list_timeout=3))


@contextmanager
def _locked(url: str, table: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


async def test_submissions_are_taken_while_slow_lists_have_all_that_lists_may_have(client: AsyncClient, database_url: str) -> None:
    task = await submit(client)
    with _locked(database_url, "task_logs"):
        lists = [asyncio.create_task(client.get(f"/tasks/{task['id']}/logs")) for _ in range(MANY)]
        while not lists[0].done():
            taken = await client.post("/tasks", json={"type": "anything", "payload": 1})
            assert taken.status_code == 201, taken.text
            assert (await client.get(f"/tasks/{task['id']}")).status_code == 200
        answers = await asyncio.gather(*lists)
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "2")}
    details = {answer.json()["detail"] for answer in answers}
    assert details == {
        "The database took too long for this, and was stopped. A list, or an action, with more filters is quicker.",
        "Too many lists and actions are under way. Ones with more filters are quicker.",
    }
    assert (await client.get(f"/tasks/{task['id']}/logs")).status_code == 200


async def test_submissions_are_taken_while_actions_wait_for_rows_that_others_hold(client: AsyncClient, database_url: str) -> None:
    task = await submit(client, tags=["held-up"])
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", [task["id"]])
        acting = [asyncio.create_task(client.post("/tasks/actions", json={"action": "hold", "filter": {"tag": "held-up"}})) for _ in range(MANY)]
        while not acting[0].done():
            assert (await client.post("/tasks", json={"type": "anything", "payload": 1})).status_code == 201
        assert {answer.status_code for answer in await asyncio.gather(*acting)} == {503}
    assert (await client.post("/tasks/actions", json={"action": "hold", "filter": {"tag": "held-up"}})).json() == {"matched": 1, "changed": 1}


async def test_one_namespace_leaves_a_place_for_the_lists_of_others() -> None:
    lists = Lists(Settings(database=DatabaseSettings(pool_size=6, connect_timeout=0.05)))
    async with AsyncExitStack() as held:

        async def take_all() -> None:
            for _ in range(MANY):
                await held.enter_async_context(lists.place("greedy"))

        with pytest.raises(Unavailable):
            await take_all()
        async with asyncio.timeout(30), lists.place("modest"):
            pass


def _batch(count: int, **options: Any) -> dict[str, Any]:
    return {"tasks": [{"type": "anything", "payload": number, **options} for number in range(count)]}


async def _in_steps(client: AsyncClient, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    steps = [(await client.post(path, json=asked)).raise_for_status().json()]
    while cursor := steps[-1].get("next_cursor"):
        steps.append((await client.post(path, json=asked | {"cursor": cursor})).raise_for_status().json())
    return steps


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST", 30)
    for module in (actions, deliveries):
        monkeypatch.setattr(module, "PAGE", 20)
        monkeypatch.setattr(module, "BATCH", 10)


async def test_a_large_action_goes_on_from_request_to_request(client: AsyncClient, small_steps: None) -> None:
    await client.post("/tasks/batch", json=_batch(100))
    asked = {"action": "cancel", "filter": {"type": "anything"}}
    first = (await client.post("/tasks/actions", json=asked)).json()
    assert (first["matched"], first["changed"]) == (30, 30)
    await client.post("/tasks/batch", json=_batch(5))
    rest = await _in_steps(client, "/tasks/actions", asked | {"cursor": first["next_cursor"]})
    assert [step["changed"] for step in rest] == [30, 30, 10]
    assert set(rest[-1]) == {"matched", "changed"}
    live = (await client.get("/tasks?status=pending")).json()["items"]
    assert len(live) == 5, "what was submitted meanwhile is not touched"
    counted = await _in_steps(client, "/tasks/actions", {"action": "retry", "filter": {}, "dry_run": True})
    assert (sum(step["matched"] for step in counted), sum(step["changed"] for step in counted)) == (105, 0)


async def test_an_action_that_the_database_interrupts_tells_how_far_it_came(
    client: AsyncClient, database_url: str, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MOST", 1000)
    tasks = (await client.post("/tasks/batch", json=_batch(60))).json()["items"]
    asked = {"action": "cancel", "filter": {}}
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", [tasks[25]["id"]])
        # Newest first: 60 to 31 in three batches, and then the one that is held.
        first = (await client.post("/tasks/actions", json=asked)).json()
        assert (first["matched"], first["changed"]) == (30, 30)
        assert (await client.post("/tasks/actions", json=asked | {"cursor": first["next_cursor"]})).status_code == 503
    rest = await _in_steps(client, "/tasks/actions", asked | {"cursor": first["next_cursor"]})
    assert sum(step["changed"] for step in rest) == 30


@pytest.mark.parametrize("path", ["/tasks/actions", "/deliveries/actions"])
async def test_a_cursor_goes_with_its_action_and_filter_only(client: AsyncClient, small_steps: None, path: str) -> None:
    await client.post("/tasks/batch", json=_batch(40))
    cursor = (await client.post("/tasks/actions", json={"action": "hold", "filter": {}})).json()["next_cursor"]
    verb = "cancel" if path == "/tasks/actions" else "redeliver"
    for wrong in (cursor, "garbled", cursor[:-2]):
        answer = await client.post(path, json={"action": verb, "filter": {}, "cursor": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/cursor")
