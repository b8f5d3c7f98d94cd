"""Deliveries: lists, and sending again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Connection, Engine, text

from taskyard import deliveries, delivery_lists
from taskyard.delivery_lists import DeliveryFilters
from taskyard.routes import sync_routes
from taskyard.settings import Settings
from taskyard_api.routes import deliveries as routes

from .conftest import submit

pytestmark = pytest.mark.anyio


async def one(client: AsyncClient, engine: Engine, settings: Settings) -> str:
    """A task's only delivery, which is pending."""
    with engine.begin() as connection:
        sync_routes(connection, settings.routes)
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


# --- lists and actions ---


def many(engine: Engine, rows: list[dict[str, object]]) -> None:
    """Deliveries as they would be after a while, each with an event of its own."""
    ended = """WITH told AS (INSERT INTO events (task_id, namespace, type, attempt) VALUES (:task, :namespace, :event, 1) RETURNING id)
      INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event, status, next_try_at, delivered_at, created_at)
      SELECT id, :namespace, :task, :route, :notifier, :event, :status, CASE WHEN :status NOT IN ('dead', 'delivered') THEN now() END,
        CASE WHEN :status = 'delivered' THEN now() END, CAST(:at AS timestamptz) FROM told"""
    given = {
        "task": UUID(int=1),
        "namespace": "default",
        "event": "task.failed",
        "route": "a",
        "notifier": "pigeon",
        "status": "dead",
        "at": "2026-01-01T00:00Z",
    }
    with engine.begin() as connection:
        for row in rows:
            connection.execute(text(ended), given | row)


KINDS: list[dict[str, object]] = [
    {"status": "dead", "route": "a", "event": "task.failed", "at": "2026-01-01T00:00Z"},
    {"status": "delivered", "route": "a", "event": "task.failed", "at": "2026-01-02T00:00Z"},
    {"status": "dead", "route": "b", "notifier": "owl", "event": "task.expired", "at": "2026-01-03T00:00Z"},
    {"status": "pending", "route": "b", "notifier": "owl", "event": "task.failed", "task": UUID(int=2), "at": "2026-01-04T00:00Z"},
    {"status": "dead", "route": "a", "namespace": "theirs", "at": "2026-01-05T00:00Z"},
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [4, 3, 2, 1]),
        ("status=dead", [3, 1]),
        ("status=pending", [4]),
        ("status=dead&status=pending&status=queued", [4, 3, 1]),
        ("route=a", [2, 1]),
        ("route=a&route=b&status=dead", [3, 1]),
        ("notifier=owl", [4, 3]),
        ("event=task.expired", [3]),
        ("event=task.failed&notifier=owl", [4]),
        (f"task_id={UUID(int=2)}", [4]),
        ("created_after=2026-01-02T00:00:00Z", [4, 3, 2]),
        ("created_after=2026-01-02T00:00:00Z&created_before=2026-01-04T00:00:00Z", [3, 2]),
        ("created_before=2026-01-01T00:00:00Z", []),
    ],
)
async def test_deliveries_are_chosen_by_every_filter(client: AsyncClient, engine: Engine, query: str, found: list[int]) -> None:
    many(engine, KINDS)
    first = (await client.get("/deliveries")).json()["items"][-1]["id"]
    answer = await client.get(f"/deliveries?{query}")
    assert answer.status_code == 200, answer.text
    assert [int(item["id"]) - int(first) + 1 for item in answer.json()["items"]] == found
    paged, cursor = [], ""
    while True:
        page = (await client.get(f"/deliveries?{query}&limit=1{cursor}")).json()
        paged += page["items"]
        if not page["next_cursor"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert paged == answer.json()["items"]


async def test_what_the_version_before_wrote_shows_its_event_too(client: AsyncClient, engine: Engine) -> None:
    many(engine, KINDS[:1])
    with engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET event = NULL"))
    [item] = (await client.get("/deliveries")).json()["items"]
    assert item["event"] == "task.failed"
    assert (await client.get(f"/deliveries/{item['id']}")).json() == item
    assert (await client.post(f"/deliveries/{item['id']}/redeliver")).json()["event"] == "task.failed"


async def test_one_delivery_is_shown_and_another_namespaces_is_not(client: AsyncClient, engine: Engine) -> None:
    many(engine, [{}, {"namespace": "theirs"}])
    [item] = (await client.get("/deliveries")).json()["items"]
    assert (await client.get(f"/deliveries/{item['id']}")).json() == item
    assert (await client.get(f"/deliveries/{int(item['id']) + 1}")).status_code == 404


async def act(client: AsyncClient, filter: object, **more: object) -> tuple[int, dict[str, int]]:
    answer = await client.post("/deliveries/actions", json={"action": "redeliver", "filter": filter, **more})
    return answer.status_code, answer.json()


async def test_all_that_match_and_have_ended_are_sent_again(client: AsyncClient, engine: Engine) -> None:
    many(engine, KINDS)
    would = [{"status": status, "becomes": "pending", "count": 1} for status in ("dead", "delivered")]
    assert await act(client, {"route": "a"}, dry_run=True) == (200, {"matched": 2, "changed": 0, "would_change": would})
    assert await act(client, {"status": "dead", "route": ["a", "b"]}) == (200, {"matched": 2, "changed": 2})
    assert await act(client, {}) == (200, {"matched": 4, "changed": 1})
    with engine.connect() as connection:
        assert connection.execute(text("SELECT DISTINCT status FROM deliveries WHERE namespace = 'default'")).scalars().all() == ["pending"]
        assert connection.execute(text("SELECT status FROM deliveries WHERE namespace = 'theirs'")).scalar() == "dead"


async def test_a_large_redelivery_goes_a_batch_at_a_time(client: AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PAGE", 5)
    monkeypatch.setattr(routes, "BATCH", 2)
    many(engine, [{} for _ in range(12)])
    assert await act(client, {"status": "dead"}) == (200, {"matched": 12, "changed": 12})


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"action": "retry", "filter": {}}, "/action"),
        ({"action": "redeliver"}, "/filter"),
        ({"action": "redeliver", "filter": {"rout": "a"}}, "/filter/rout"),
        ({"action": "redeliver", "filter": {"status": "lost"}}, "/filter/status"),
        ({"action": "redeliver", "filter": {"event": ["task.gone"]}}, "/filter/event/0"),
        ({"action": "redeliver", "filter": {"task_id": "x"}}, "/filter/task_id"),
        ({"action": "redeliver", "filter": {}, "dry_run": 1}, "/dry_run"),
    ],
)
async def test_a_mistake_in_an_action_is_named(client: AsyncClient, body: object, pointer: str) -> None:
    answer = await client.post("/deliveries/actions", json=body)
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_page_of_few_among_many_is_read_by_index(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO events (task_id, namespace, type, attempt) VALUES (:id, 'default', 'task.failed', 1)"), {"id": UUID(int=1)})
        connection.execute(
            text(
                """INSERT INTO deliveries (event_id, namespace, task_id, route, notifier, event, status, next_try_at, delivered_at, created_at)
                SELECT (SELECT max(id) FROM events), 'default', gen_random_uuid(), CASE WHEN n = 9 THEN 'rare' ELSE 'common' END,
                  CASE WHEN n = 9 THEN 'rare' ELSE 'common' END, CASE WHEN n = 9 THEN 'task.lost' ELSE 'task.failed' END,
                  CASE n WHEN 9 THEN 'dead' WHEN 10 THEN 'queued' ELSE 'delivered' END, CASE WHEN n = 10 THEN now() END,
                  CASE WHEN n NOT IN (9, 10) THEN now() END, timestamptz '2026-01-01' + n * interval '1 minute' FROM generate_series(1, 20000) AS n"""
            )
        )
        connection.execute(text("ANALYZE deliveries"))
        early = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=20)
        for few in (
            DeliveryFilters(status=("dead",)),
            DeliveryFilters(status=("queued", "pending")),
            DeliveryFilters(route=("rare",)),
            DeliveryFilters(notifier=("rare",)),
            DeliveryFilters(event=("task.lost",)),
            DeliveryFilters(created_before=early),
            DeliveryFilters(),
        ):
            before = fetched(connection)
            assert delivery_lists.list_deliveries(connection, "default", few, 50).items
            assert fetched(connection) - before < 200, few
        connection.rollback()


def fetched(connection: Connection) -> int:
    """Rows of deliveries that this transaction has read so far."""
    counts = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'deliveries'")
    return int(connection.execute(counts).scalar_one())
