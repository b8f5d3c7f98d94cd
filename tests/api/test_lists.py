"""Lists: every filter, and pages that neither repeat nor skip."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import anyio
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine, event, text

from taskyard import deliveries, queries
from taskyard.queries import id_only
from taskyard.routes import sync_routes
from taskyard.settings import Settings

from .conftest import force, submit

pytestmark = pytest.mark.anyio


async def listed(client: AsyncClient, query: str = "") -> list[str]:
    answer = await client.get(f"/tasks?{query}")
    assert answer.status_code == 200, answer.text
    return [task["id"] for task in answer.json()["items"]]


async def pages(client: AsyncClient, path: str, query: str) -> list[list[dict[str, Any]]]:
    found, cursor = [], None
    while True:
        answer = (await client.get(f"{path}?{query}" + (f"&cursor={cursor}" if cursor else ""))).json()
        found.append(answer["items"])
        cursor = answer["next_cursor"]
        if cursor is None:
            return found


async def test_a_list_is_newest_first_in_pages_without_gaps(client: AsyncClient) -> None:
    made = [(await submit(client))["id"] for _ in range(7)]
    found = await pages(client, "/tasks", "limit=3")
    assert [[task["id"] for task in page] for page in found] == [made[:3:-1], made[3:0:-1], made[0::-1]]


async def test_tasks_that_come_meanwhile_do_not_shift_the_next_page(client: AsyncClient) -> None:
    made = [(await submit(client))["id"] for _ in range(4)]
    first = (await client.get("/tasks?limit=2")).json()
    await submit(client)
    assert await listed(client, f"limit=2&cursor={first['next_cursor']}") == made[1::-1]


async def test_a_cursor_is_refused_with_other_filters(client: AsyncClient) -> None:
    for _ in range(3):
        await submit(client, tags=["a"])
    cursor = (await client.get("/tasks?limit=1&tag=a")).json()["next_cursor"]
    assert len(await listed(client, f"limit=2&tag=a&cursor={cursor}")) == 2
    for query in ("tag=b", "", "tag=a&status=pending"):
        answer = await client.get(f"/tasks?{query}&cursor={cursor}")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/cursor")
    for garbled in (cursor[:-1], cursor + "A", cursor[::-1], "A" + cursor[1:], cursor.swapcase()):
        assert (await client.get(f"/tasks?tag=a&cursor={garbled}")).status_code == 422


async def test_each_filter_finds_its_tasks(client: AsyncClient, engine: Engine) -> None:
    a = await submit(client, "pages.fetch", {"url": "http://x"}, tags=["red", "blue"])
    b = await submit(client, queue="slow", priority=9, tags=["green"])
    c = await submit(client, delay=60, tags=["redder"])
    force(engine, b["id"], "failed")
    await client.post(f"/tasks/{c['id']}/hold")
    d = await submit(client, delay=60)
    ids = {a["id"]: "a", b["id"]: "b", c["id"]: "c", d["id"]: "d"}
    expected = {
        "status=pending": "a",
        "status=failed": "b",
        "status=held": "c",
        "status=scheduled": "d",
        "status=failed&status=held&status=pending": "cba",
        "status=succeeded": "",
        "status=failed&type=pages.fetch": "",
        "type=pages.fetch": "a",
        "type=pages.fetch&type=anything": "dcba",
        "type=never.heard.of": "",
        "queue=slow": "b",
        "queue=slow&queue=io": "ba",
        "tag=red": "a",
        "tag=blue&tag=green": "ba",
        "tag=blue&queue=slow": "",
        "priority=9": "b",
        "q=pages": "a",
        "q=red": "ca",
        "q=%25": "",
        f"q={b['id']}": "b",
        f"q={b['id'][:-1]}": "b",
        f"q={a['id'][:9]}": "dcba" if len({i[:9] for i in ids}) == 1 else None,
        f"created_after={quote(b['created_at'])}": "dcb",
        f"created_before={quote(b['created_at'])}": "a",
        f"created_after={quote(b['created_at'])}&created_before={quote(d['created_at'])}": "cb",
        "created_after=1970-01-01T00:00:00Z&created_before=9999-12-30T00:00:00Z": "dcba",
        "created_after=1970-01-01T00:00:00+00:00": "dcba",
    }
    for query, names in expected.items():
        if names is not None:
            assert "".join(ids[id_] for id_ in await listed(client, query)) == names, query


async def test_a_list_finds_the_children_of_a_task_and_pages_through_them(client: AsyncClient, engine: Engine) -> None:
    parent = await submit(client)
    children = [await submit(client) for _ in range(3)]
    assert children[0]["parent_id"] is None
    with engine.begin() as connection:
        for child in children:
            connection.execute(text("UPDATE tasks SET parent_id = :parent WHERE id = :id"), {"parent": parent["id"], "id": child["id"]})
    force(engine, children[1]["id"], "failed")
    ids = [child["id"] for child in children]
    assert await listed(client, f"parent_id={parent['id']}") == ids[::-1]
    assert await listed(client, f"parent_id={parent['id']}&status=pending&type=anything") == [ids[2], ids[0]]
    assert await listed(client, f"parent_id={parent['id']}&status=failed&type=pages.fetch") == []
    assert await listed(client, f"parent_id={ids[0]}") == []
    found = await pages(client, "/tasks", f"limit=1&parent_id={parent['id']}")
    assert [task["id"] for page in found for task in page] == ids[::-1]
    assert (await client.get(f"/tasks/{ids[0]}")).json()["parent_id"] == parent["id"]
    assert (await client.get("/tasks?parent_id=5")).status_code == 422
    action = {"action": "cancel", "filter": {"parent_id": parent["id"]}}
    assert (await client.post("/tasks/actions", json=action)).json() == {"matched": 3, "changed": 2}
    wrong = await client.post("/tasks/actions", json={"action": "cancel", "filter": {"parent_id": "x"}})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/filter/parent_id")


async def test_several_statuses_page_together_in_order(client: AsyncClient, engine: Engine) -> None:
    made = [await submit(client) for _ in range(6)]
    for task, status in zip(made, ("failed", "pending", "succeeded", "held", "failed", "cancelled"), strict=True):
        if status != "pending":
            force(engine, task["id"], status)
    found = await pages(client, "/tasks", "limit=2&status=failed&status=succeeded&status=held&status=pending")
    assert [task["id"] for page in found for task in page] == [made[n]["id"] for n in (4, 3, 2, 1, 0)]


async def test_a_long_history_comes_in_pages_oldest_first(client: AsyncClient) -> None:
    task = await submit(client)
    for verb in ("hold", "release", "hold", "release"):
        await client.post(f"/tasks/{task['id']}/{verb}")
    found = await pages(client, f"/tasks/{task['id']}/events", "limit=2")
    assert [len(page) for page in found] == [2, 2, 1]
    numbers = [int(event["id"]) for page in found for event in page]
    assert numbers == sorted(numbers)
    other = await submit(client)
    cursor = (await client.get(f"/tasks/{task['id']}/events?limit=2")).json()["next_cursor"]
    assert (await client.get(f"/tasks/{other['id']}/events?cursor={cursor}")).status_code == 422


async def test_deliveries_are_listed_with_their_tries(client: AsyncClient, engine: Engine, api_settings: Settings) -> None:
    with engine.begin() as connection:
        sync_routes(connection, api_settings.routes)
    tasks = [await submit(client) for _ in range(3)]
    await client.post(f"/tasks/{tasks[0]['id']}/cancel")
    with engine.begin() as connection:
        first = deliveries.dispatch(connection, 1, 60, 8)[0].id
        claimed = deliveries.claim(connection, [first], 60)
        deliveries.finish(connection, [deliveries.Tried(first, claimed[0]["fence"], "retry", "no pigeon", 60)], 8)
    found = await pages(client, "/deliveries", "limit=3")
    assert [len(page) for page in found] == [3, 1]
    assert [item["event"] for page in found for item in page] == ["task.cancelled", *["task.submitted"] * 3]
    tried = found[1][0]
    assert (tried["status"], tried["route"], tried["notifier"], tried["attempt"]) == ("pending", "all ends", "pigeon", 1)
    assert [(t["attempt"], t["outcome"], t["detail"]) for t in tried["tries"]] == [(1, "failed", "no pigeon")]
    assert len((await client.get(f"/deliveries?task_id={tasks[0]['id']}")).json()["items"]) == 2
    assert (await client.get("/deliveries?status=dead&status=delivered")).json()["items"] == []
    assert (await client.get("/deliveries?route=other")).json()["items"] == []
    assert (await client.get("/deliveries?task_id=x")).status_code == 422


async def test_the_list_of_a_deep_table_reads_by_index(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    """Neither sorts nor scans the table: seen in what Postgres itself counts."""
    with engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO tasks (id, type, queue, lane, priority, status, payload, timeout, max_attempts, finished_at)
                SELECT gen_random_uuid(), 'anything', 'default', 'sync', 5, CASE WHEN n % 2 = 0 THEN 'pending' ELSE 'failed' END, '{}', 1, 1,
                CASE WHEN n % 2 = 1 THEN now() END FROM generate_series(1, 20000) AS n"""
            )
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE tasks"))

    def scans() -> tuple[int, int]:
        query = "SELECT seq_tup_read + idx_tup_fetch, idx_scan FROM pg_stat_user_tables WHERE relname = 'tasks'"
        with engine.begin() as connection:
            return tuple(connection.execute(text(query)).one())

    engine.dispose()
    read, looked_up = scans()
    for query in ("", "status=failed", "status=held&status=failed&status=pending", "type=anything&type=pages.fetch", "tag=none"):
        await listed(client, query)
    # A server process tells its numbers when it ends.
    await app.state.service.engine.dispose()
    while scans()[1] < looked_up + 8:  # noqa: ASYNC110  # no event of ours tells it
        await anyio.sleep(0.02)
    assert scans()[0] - read < 1000


async def test_tasks_are_found_by_ids_keys_and_metadata(client: AsyncClient) -> None:
    a = await submit(client, unique_key="one", metadata={"customer": "42", "plan": "free", "a.b": True})
    b = await submit(client, unique_key="two", metadata={"customer": 42, "nested": {"customer": "7"}})
    c = await submit(client, metadata={"customer": None})
    await client.post(f"/tasks/{b['id']}/cancel")
    ids = {a["id"]: "a", b["id"]: "b", c["id"]: "c"}
    expected = {
        f"id={a['id']}": "a",
        f"id={c['id']}&id={a['id']}": "ca",
        f"id={a['id']}&id={b['id']}&status=cancelled": "b",
        f"id={a['id']}&type=pages.fetch": "",
        f"id={a['id']}&parent_id={b['id']}": "",
        "unique_key=two": "b",
        "unique_key=one&unique_key=two&status=pending": "a",
        "metadata.customer=42": "ba",
        "metadata.customer=42&metadata.plan=free": "a",
        "metadata.customer=7": "",
        "metadata.customer=null": "c",
        "metadata.a.b=true": "a",
        "metadata.plan=%22free%22": "",
    }
    for query, names in expected.items():
        assert "".join(ids[id_] for id_ in await listed(client, query)) == names, query
        assert "".join(ids[page[0]["id"]] for page in await pages(client, "/tasks", f"{query}&limit=1") if page) == names, query


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("id=x", "/id/0"),
        ("metadata.=1", "/metadata."),
        (f"metadata.a={'x' * 256}", "/metadata.a"),
        ("&".join(f"metadata.n{n}=1" for n in range(11)), "/metadata"),
        ("metadata=1", "/metadata"),
        ("fields=id,statuss", "/fields"),
        ("fields=", "/fields"),
    ],
)
async def test_a_wrong_new_filter_is_refused_with_its_place(client: AsyncClient, query: str, pointer: str) -> None:
    answer = await client.get(f"/tasks?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_a_list_has_the_fields_that_were_asked_for(client: AsyncClient) -> None:
    made = await submit(client, metadata={"a": 1}, tags=["t"])
    for _ in range(2):
        await submit(client)
    page = (await client.get("/tasks?tag=t&fields=id,metadata,status")).json()
    assert page == {"items": [{"id": made["id"], "metadata": {"a": 1}, "status": "pending"}], "next_cursor": None}
    light = (await client.get("/tasks?limit=1&fields=id&status=pending&status=held")).json()
    assert list(light["items"][0]) == ["id"]
    whole = (await client.get(f"/tasks?limit=2&status=pending&status=held&cursor={light['next_cursor']}")).json()["items"]
    assert [task["payload"] for task in whole] == [made["payload"]] * 2
    wrong = await client.get("/tasks?fields=id,statuss")
    assert "Did you mean 'status'?" in wrong.json()["errors"][0]["detail"]


async def test_what_is_not_asked_for_is_not_read(client: AsyncClient, engine: Engine) -> None:
    await submit(client)
    read: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: read.append(given[2]))
    with engine.connect() as connection:
        queries.list_tasks(connection, "default", queries.TaskFilters(), 10, without=("payload", "result"))
    assert "NULL AS payload" in read[-1]
    assert "tasks.payload" not in read[-1]


async def test_large_answers_are_packed_for_those_who_take_that(client: AsyncClient) -> None:
    for _ in range(3):
        await submit(client)
    packed = await client.get("/tasks", headers={"Accept-Encoding": "gzip"})
    plain = await client.get("/tasks", headers={"Accept-Encoding": "identity"})
    assert (packed.headers.get("content-encoding"), plain.headers.get("content-encoding")) == ("gzip", None)
    assert "Accept-Encoding" in packed.headers["vary"]
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert packed.json() == plain.json()
    small = await client.get("/tasks?limit=1&fields=id", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


@pytest.mark.parametrize(
    ("q", "only"),
    [
        ("01a21650-e", True),
        ("01A21650-E9A0-77c4", True),
        ("01a21650-e9a0-77c4-85ef-4535789a4cf1", True),
        ("01a21650", False),
        ("01a21650-", False),
        ("20261126-1", False),
        ("01a21650-report", False),
        ("0report-e", False),
        ("01a21650-e9a0-77c4-85ef-4535789a4cf1-more", False),
        ("01a21650-e9a0-77c4-85ef-4535789a4cf1a", False),
    ],
)
def test_only_what_can_hardly_be_a_tag_is_looked_for_as_an_id_alone(q: str, only: bool) -> None:
    assert id_only(q) is only
