"""Quotas of a namespace: what is beyond them is refused, and what is within them is not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from httpx2 import AsyncClient
from pydantic import ValidationError
from sqlalchemy import Engine, text

from taskyard import keys, quotas
from taskyard.plugins import Registry
from taskyard.settings import AuthSettings, Quota, QuotaSettings, Settings, load_settings
from taskyard_api.app import create_app
from taskyard_api.openapi import HEADERS

from .conftest import client_of, force, submit

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(settings: Settings, registry: Registry, processes: int = 1, **quota: Any) -> AsyncIterator[list[AsyncClient]]:
    """Clients of as many services on one database, as web processes are."""
    own = settings.model_copy(update={"quotas": QuotaSettings(**quota)})
    async with AsyncExitStack() as stack:
        clients = []
        for app in [create_app(own, registry) for _ in range(processes)]:
            await stack.enter_async_context(app.router.lifespan_context(app))
            clients.append(await stack.enter_async_context(client_of(app)))
        yield clients


def idle(engine: Engine, seconds: float) -> None:
    """Let so many seconds pass for what namespaces have submitted."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE submission_rates SET busy_until = busy_until - :seconds * interval '1 second'"), {"seconds": seconds})


def slug(answer: Any) -> str:
    return str(answer.json()["type"].rpartition(":")[2])


TASK = {"type": "anything", "payload": 1}


async def test_without_quotas_there_is_no_statement_and_no_header_more(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    async with served(api_settings, registry) as (client,):
        answer = await client.post("/tasks", json=TASK)
    assert not [name for name in answer.headers if name.startswith("ratelimit")]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM submission_rates")).scalar() == 0


async def test_several_processes_keep_one_rate_together(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    # A rate that is slow enough for the machine: one more task comes free in 500 s.
    async with served(api_settings, registry, 3, submissions_per_second=0.002) as clients:
        answers = await asyncio.gather(*(client.post("/tasks", json=TASK) for client in clients for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201] + [429] * 14
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert slug(refused) == "rate-limited"
        assert 400 < int(refused.headers["Retry-After"]) <= 500
        taken = next(answer for answer in answers if answer.status_code == 201)
        for answer in (taken, refused):
            assert answer.headers["RateLimit-Policy"] == '"submissions";q=1;w=500'
            assert answer.headers["RateLimit"].startswith('"submissions";r=0;t=')
            assert all(re.fullmatch(HEADERS[name][1]["pattern"], answer.headers[name]) for name in ("RateLimit", "RateLimit-Policy")), "as the document says"


async def test_a_seconds_tasks_may_come_at_once_and_each_of_a_batch_counts(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    rate = 10.0
    with engine.begin() as connection:
        assert quotas.take(connection, "n", rate, 6).wait == 0
        assert 0.19 < quotas.take(connection, "n", rate, 6).wait <= 0.2, "now() stands still in a transaction"
        assert quotas.take(connection, "n", rate, 4).wait == 0
        assert quotas.take(connection, "n", rate, 1).wait == pytest.approx(0.1)
        assert quotas.take(connection, "other", rate, 1).wait == 0
    idle(engine, 1000)
    with engine.begin() as connection:
        assert quotas.take(connection, "n", rate, 1000).busy == pytest.approx(100), "more than a second's are taken when all is quiet"
        assert quotas.take(connection, "n", rate, 1).wait == pytest.approx(99.1)
    async with served(api_settings, registry, submissions_per_second=1000) as (client,):
        batch = await client.post("/tasks/batch", json={"tasks": [TASK] * 1000})
        assert (batch.status_code, batch.headers["RateLimit-Policy"]) == (201, '"submissions";q=1000;w=1')
        with engine.connect() as connection:
            busy = connection.execute(text("SELECT busy_until > now() FROM submission_rates WHERE namespace = 'default'")).scalar()
        assert busy is not None


async def test_only_so_many_tasks_may_live_and_an_end_makes_room(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    async with served(api_settings, registry, live_tasks=20) as (client,):
        tasks = [await submit(client) for _ in range(20)]
        refused = await client.post("/tasks", json=TASK)
        assert (refused.status_code, slug(refused), refused.headers["Retry-After"]) == (429, "rate-limited", "5")
        force(engine, tasks[0]["id"], "succeeded")
        assert (await client.post("/tasks/batch", json={"tasks": [TASK] * 2})).status_code == 429
        assert (await client.post("/tasks", json=TASK)).status_code == 201
        never = await client.post("/tasks/batch", json={"tasks": [TASK] * 21})
        assert "never" in never.json()["detail"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tasks WHERE ended IS NULL")).scalar() == 20


async def test_a_crowd_at_once_over_some_processes_does_not_go_beyond_what_may_live(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    async with served(api_settings, registry, live_tasks=100) as (client,):
        answers = await asyncio.gather(*(client.post("/tasks", json=TASK) for _ in range(200)))
    taken = sum(answer.status_code == 201 for answer in answers)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar() == taken
    assert taken <= 100


async def test_a_large_payload_is_refused_with_its_place(api_settings: Settings, registry: Registry) -> None:
    async with served(api_settings, registry, payload_bytes=10) as (client,):
        assert (await client.post("/tasks", json=TASK | {"payload": "x" * 8})).status_code == 201
        one = await client.post("/tasks", json=TASK | {"payload": "x" * 9})
        many = await client.post("/tasks/batch", json={"tasks": [TASK, TASK | {"payload": "x" * 20}]})
    assert [(answer.status_code, slug(answer)) for answer in (one, many)] == [(413, "too-large")] * 2
    assert one.json()["errors"] == [{"pointer": "/payload", "detail": "11 bytes of JSON"}]
    assert many.json()["errors"] == [{"pointer": "/tasks/1/payload", "detail": "22 bytes of JSON"}]


async def test_what_is_wrong_or_only_looked_at_spends_nothing(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    async with served(api_settings, registry, submissions_per_second=0.002) as (client,):
        assert (await client.post("/tasks", json={"type": "nothing"})).status_code == 422
        assert (await client.post("/tasks?validate_only=true", json=TASK)).status_code == 200
        assert (await client.post("/tasks", json=TASK)).status_code == 201
        assert (await client.get("/tasks")).status_code == 200


async def test_each_namespace_has_its_own(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    with engine.begin() as connection:
        secrets = {name: keys.create(connection, name, namespace=name).secret for name in ("small", "large", "other")}
    settings = api_settings.model_copy(update={"auth": AuthSettings(mode="keys")})
    own = {"small": {"live_tasks": 1}, "large": {"live_tasks": 50, "payload_bytes": 1}}
    async with served(settings, registry, live_tasks=3, namespaces=own) as (client,):
        for name, most in (("small", 1), ("other", 3), ("large", 5)):
            headers = {"X-API-Key": secrets[name]}
            answers = [await client.post("/tasks", json=TASK, headers=headers) for _ in range(5)]
            assert sum(answer.status_code == 201 for answer in answers) == most, name


def test_a_namespaces_table_sets_what_it_names_and_keeps_the_rest(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "taskyard.toml"
    config.write_text("[quotas]\nlive_tasks = 10\npayload_bytes = 100\n[quotas.namespaces.reports]\nlive_tasks = 5\n")
    monkeypatch.setenv("TASKYARD_QUOTAS__SUBMISSIONS_PER_SECOND", "2.5")
    found = load_settings(config).quotas
    assert found.any
    assert found.of("reports") == Quota(submissions_per_second=2.5, live_tasks=5, payload_bytes=100)
    assert found.of("others").live_tasks == 10
    monkeypatch.setenv("TASKYARD_QUOTAS__NAMESPACES", '{"mail": {"live_tasks": 7}}')
    assert load_settings().quotas.of("mail").live_tasks == 7
    assert not QuotaSettings().any
    with pytest.raises(ValidationError):
        QuotaSettings(live_tasks=0)
    assert json.loads(found.model_dump_json())["namespaces"]["reports"]["live_tasks"] == 5


async def test_only_allowed_queues_may_be_named_and_those_of_handlers_always_may(api_settings: Settings, registry: Registry) -> None:
    async with served(api_settings, registry, queues=("report-*", "bulk")) as (client,):
        for queue in ("report-7", "bulk", "default", "io"):
            assert (await client.post("/tasks", json=TASK | {"queue": queue})).status_code == 201, queue
        assert (await client.post("/tasks", json=TASK)).status_code == 201
        refused = await client.post("/tasks", json=TASK | {"queue": "bulk2"})
        assert (refused.status_code, slug(refused)) == (422, "invalid-request")
        assert refused.json()["errors"] == [{"pointer": "/queue", "detail": "not a queue that this namespace may use. Did you mean 'bulk'?"}]
        checked = await client.post("/tasks?validate_only=true", json=TASK | {"queue": "report"})
        assert (checked.status_code, checked.json()["errors"][0]["pointer"]) == (422, "/queue")
        batch = await client.post("/tasks/batch", json={"tasks": [TASK, TASK | {"queue": "tenant-1"}, TASK | {"queue": "tenant-2"}]})
        assert [problem["pointer"] for problem in batch.json()["errors"]] == ["/tasks/1/queue", "/tasks/2/queue"]
        assert {item["name"] for item in (await client.get("/queues")).json()["items"]} == {"bulk", "default", "io", "report-7"}


def test_a_namespace_may_have_queues_of_its_own_or_none_but_those_of_handlers() -> None:
    settings = QuotaSettings(queues=("a-*",), namespaces={"reports": Quota(queues=("r-*",)), "plain": Quota(queues=()), "other": Quota(live_tasks=1)})
    assert [settings.of(namespace).queues for namespace in ("any", "reports", "plain", "other")] == [("a-*",), ("r-*",), (), ("a-*",)]
