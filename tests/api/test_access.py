"""Keys: who may call what, in which namespace, and how everybody else is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import Connection, Engine, text

from taskyard import deliveries, keys
from taskyard.errors import InvalidInput
from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, AuthSettings, Settings
from taskyard_api import access
from taskyard_api.app import create_app
from taskyard_api.edge import canonical
from tests.api.conftest import client_of, submit

pytestmark = pytest.mark.anyio
EVERYTHING = ("tasks:read", "tasks:write", "admin")


@pytest.fixture
async def app(api_settings: Settings, registry: Registry) -> AsyncIterator[FastAPI]:
    made = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with made.router.lifespan_context(made):
        yield made


def new_key(engine: Engine, name: str = "someone", **options: Any) -> str:
    with engine.begin() as connection:
        return keys.create(connection, name, **options).secret


def with_key(app: FastAPI, key: str) -> AsyncClient:
    client = client_of(app)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def calls(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every call of the service, those that OpenAPI does not show too, with something in the place of each parameter."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{task_id}", "01890a5d-ac96-774b-bcce-b302099a8057").replace("{", "").replace("}", "")
    for path in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/metrics"):
        yield "GET", path


async def test_every_call_but_health_asks_for_a_key_and_has_a_rule(app: FastAPI) -> None:
    asked = list(calls(app))
    assert len(asked) > 20
    async with client_of(app) as client:
        for method, path in asked:
            for key in ({}, {"Authorization": "Basic dTpw"}, {"Authorization": "Bearer"}):
                for address in {path, path.replace("/api/v1/", "/api/"), path + "/"}:
                    answer = await client.request(method, f"http://test{address}", headers=key, content=b"{}")
                    if path.startswith("/health/"):
                        assert answer.status_code == 200, path
                    else:
                        assert (answer.status_code, answer.json()["type"]) == (401, "urn:taskyard:problem:unauthorized"), (method, address)
                        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="taskyard"'
            assert access.rule_for(method, canonical(path)) is not None, f"{method} {path} has no rule in access.py"
        for strange in ("/", "/nothing", "/health", "/health/", "/health/live/../../api/v1/tasks", "//api/v1/tasks", "/API/v1/tasks"):
            assert (await client.get(f"http://test{strange}")).status_code == 401, strange


async def test_a_key_is_taken_in_either_header_and_a_wrong_one_in_none(app: FastAPI, engine: Engine) -> None:
    key = new_key(engine)
    id_, secret = key.removeprefix("ty_").split("_", 1)
    async with client_of(app) as client:
        for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key} "}, {"X-API-Key": key}):
            assert (await client.get("/tasks", headers=headers)).status_code == 200
        wrong = (
            f"ty_{id_}_{secret[:-1]}",
            f"ty_{id_}_{secret[::-1]}",
            f"ty_{'0' * 16}_{secret}",
            "ty_",
            "ty__",
            key + "x",
            "\u00e9",
            "x" * 10_000,
            f"{key}\x00",
        )
        for shown in wrong:
            answer = await client.get("/tasks", headers=[(b"X-API-Key", shown.encode())])
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].endswith('error="invalid_token"')
            assert secret[:20] not in answer.text


async def test_a_scope_opens_its_calls_and_no_others(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine, "reader", scopes=("tasks:read",))) as reader:
        assert (await reader.get("/tasks")).status_code == 200
        refused = await reader.post("/tasks", json={"type": "anything"})
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:taskyard:problem:forbidden")
        assert "tasks:write" in refused.json()["detail"]
        assert 'scope="tasks:write"' in refused.headers["WWW-Authenticate"]
        assert (await reader.get("/queues")).status_code == 403
        assert (await reader.get("http://test/metrics")).status_code == 403
        assert (await reader.get("/nothing")).status_code == 404
    async with with_key(app, new_key(engine, "writer", scopes=("tasks:write",))) as writer:
        await submit(writer)
        assert (await writer.get("/tasks")).status_code == 403
    async with with_key(app, new_key(engine, "operator", scopes=("admin",))) as operator:
        assert len((await operator.get("/tasks")).json()["items"]) == 1
        for path in ("/queues", "http://test/metrics", "http://test/openapi.json", "http://test/docs"):
            assert (await operator.get(path)).status_code == 200, path


async def test_a_foreign_task_is_nowhere(app: FastAPI, engine: Engine, api_settings: Settings) -> None:
    with engine.begin() as connection:
        deliveries.sync_routes(connection, api_settings.routes)
    async with (
        with_key(app, new_key(engine, "a", namespace="ours", scopes=EVERYTHING)) as ours,
        with_key(app, new_key(engine, "b", namespace="theirs", scopes=EVERYTHING)) as theirs,
    ):
        mine = await submit(ours, tags=["secret"], unique_key="one")
        await submit(theirs, unique_key="one")
        delivery = (await ours.get("/deliveries")).json()["items"][0]
        for method, path in calls(app):
            if "{" not in path and "01890a5d" not in path:
                continue
            address = path.replace("01890a5d-ac96-774b-bcce-b302099a8057", mine["id"])
            body = {"priority": 1} if method == "PATCH" else None
            answer = await theirs.request(method, f"http://test{address}", json=body)
            assert answer.status_code == 404, (method, path, answer.text)
        assert (await theirs.post(f"/deliveries/{delivery['id']}/redeliver")).status_code == 404
        for query in ("", "?tag=secret", f"?q={mine['id']}", f"?q={mine['id'][:8]}&type=anything"):
            found = (await theirs.get(f"/tasks{query}")).json()["items"]
            assert mine["id"] not in [task["id"] for task in found]
        assert (await theirs.get(f"/deliveries?task_id={mine['id']}")).json()["items"] == []
        cursor = (await ours.get("/tasks?limit=1")).json()["next_cursor"]
        assert cursor is None
        assert (await ours.get(f"/tasks/{mine['id']}")).json()["status"] == "pending"
    with engine.connect() as connection:
        assert {row.namespace for row in connection.execute(text("SELECT DISTINCT namespace FROM events"))} == {"ours", "theirs"}


async def test_a_revoked_or_expired_key_ends_soon_and_a_rotated_one_overlaps(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 0.0)
    old = new_key(engine, "ci", scopes=EVERYTHING)
    with engine.begin() as connection:
        new = keys.rotate(connection, "ci", overlap=timedelta(hours=1)).secret
    short = new_key(engine, "short", lasts=timedelta(milliseconds=1))
    async with with_key(app, old) as before, with_key(app, new) as after, with_key(app, short) as ended:
        assert (await before.get("/queues")).status_code == (await after.get("/queues")).status_code == 200
        assert (await ended.get("/tasks")).status_code == 401
        with engine.begin() as connection:
            keys.revoke(connection, old.split("_")[1])
        assert (await before.get("/tasks")).status_code == 401
        assert (await after.get("/tasks")).status_code == 200
        with engine.begin() as connection:
            keys.rotate(connection, "ci", overlap=timedelta(hours=1))
            with pytest.raises(InvalidInput, match="rotated out"):
                keys.rotate(connection, new.split("_")[1], overlap=timedelta(hours=1))
            keys.revoke(connection, new.split("_")[1])
        assert (await after.get("/tasks")).status_code == 401


async def test_a_key_is_remembered_for_a_while_and_not_for_longer_than_it_lasts(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 3600.0)
    looked_up: list[str] = []
    ask = keys.look_up

    def asking(connection: Connection, key: str) -> keys.Caller | None:
        looked_up.append(key)
        return ask(connection, key)

    monkeypatch.setattr(keys, "look_up", asking)
    async with with_key(app, new_key(engine)) as client, with_key(app, new_key(engine, "short", lasts=timedelta(seconds=1))) as short:
        for _ in range(5):
            assert (await client.get("/tasks")).status_code == 200
        assert len(looked_up) == 1
        answer = await short.get("/tasks")
        while answer.status_code == 200:
            await asyncio.sleep(0.05)
            answer = await short.get("/tasks")
        assert answer.status_code == 401


async def test_when_a_key_was_last_used_is_known_to_the_minute(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 0.0)
    key = new_key(engine)

    def last_used() -> Any:
        with engine.connect() as connection:
            return keys.listed(connection)[0].last_used_at

    assert last_used() is None
    async with with_key(app, key) as client:
        await client.get("/tasks")
        first = last_used()
        assert first is not None
        await client.get("/tasks")
        assert last_used() == first
        with engine.begin() as connection:
            connection.execute(text("UPDATE keys SET last_used_at = now() - interval '2 minutes'"))
        await client.get("/tasks")
        assert last_used() > first


async def test_guessing_is_slowed_down_by_address_and_right_keys_still_work(app: FastAPI, engine: Engine) -> None:
    known, unknown = new_key(engine), new_key(engine, "unknown")

    def from_(address: str, key: str) -> AsyncClient:
        return AsyncClient(transport=ASGITransport(app, client=(address, 1)), base_url="http://test/api/v1", headers={"X-API-Key": key})

    guess = f"ty_{'0' * 16}_{'x' * 43}"
    async with (
        from_("2001:db8::1", known) as right,
        from_("2001:db8::2", guess) as wrong,
        from_("2001:db8::3", unknown) as late,
        from_("2001:db8:0:1::1", unknown) as elsewhere,
    ):
        assert (await right.get("/tasks")).status_code == 200
        answers = await asyncio.gather(*(wrong.get("/tasks") for _ in range(3 * int(access.BURST))))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {401, 429}
        assert statuses.count(401) < 2 * access.BURST, "many at once are no way around it"
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["type"] == "urn:taskyard:problem:rate-limited"
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        assert (await late.get("/tasks")).status_code in (200, 429)
        assert (await right.get("/tasks")).status_code == 200
        assert (await elsewhere.get("/tasks")).status_code == 200


def test_what_an_address_may_try_runs_out_and_comes_back() -> None:
    failures = access.Failures()
    for _ in range(int(access.BURST)):
        assert failures.take("a", 0.0) == 0
    assert failures.take("a", 0.0) == 1 / access.PER_SECOND
    assert failures.take("b", 0.0) == 0
    failures.give_back("a", 0.0)
    assert failures.take("a", 0.0) == 0
    assert failures.take("a", 1 / access.PER_SECOND) == 0


async def test_an_operators_verb_leaves_who_did_it(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine, "ops", scopes=("admin",))) as operator:
        assert (await operator.post("/queues/io/pause")).status_code == 200
        assert (await operator.post("/queues/nowhere/pause")).status_code == 404
        assert (await operator.post("/queues/io/resume")).status_code == 200
    with engine.connect() as connection:
        assert [(row.key_name, row.verb, row.target) for row in keys.noted(connection, 10)] == [("ops", "queue.resume", "io"), ("ops", "queue.pause", "io")]


async def test_the_document_says_which_key_each_call_needs(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine)) as client:
        document = (await client.get("http://test/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    post = document["paths"]["/api/v1/tasks"]["post"]
    assert post["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "403", "429"} <= set(post["responses"])
    assert "`tasks:write`" in post["description"]
    assert "security" not in document["paths"]["/health/live"]["get"]


def test_keys_are_asked_for_wherever_strangers_can_call() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.com", ""):
        assert Settings(api=ApiSettings(host=host)).asks_for_keys
        assert not Settings(api=ApiSettings(host=host), auth=AuthSettings(mode="none")).asks_for_keys
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not Settings(api=ApiSettings(host=host)).asks_for_keys
        assert Settings(api=ApiSettings(host=host), auth=AuthSettings(mode="keys")).asks_for_keys
