"""A submission that is repeated with its Idempotency-Key makes nothing new, however it is repeated."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import httpx2
import pluggy
import pytest
import uvicorn
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine, event, text

from taskyard import hookspecs
from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard.up.plan import free_port
from taskyard_api.app import create_app
from tests.proxy import Proxy

from .conftest import client_of, submit

pytestmark = pytest.mark.anyio
TASK = {"type": "anything", "payload": {"a": 1, "b": 2}}


async def send(client: AsyncClient, body: Any, key: str, path: str = "/tasks") -> Any:
    return await client.post(path, json=body, headers={"Idempotency-Key": key})


def slug(answer: Any) -> str:
    return str(answer.json()["type"]).rpartition(":")[2]


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM tasks")).scalar_one())


async def test_the_same_key_and_body_is_answered_with_the_first_task_as_it_stands(client: AsyncClient, engine: Engine) -> None:
    first = await send(client, TASK, "k")
    assert (first.status_code, "idempotency-replayed" in first.headers) == (201, False)
    held = (await client.post(f"/tasks/{first.json()['id']}/hold")).json()
    again = await client.post("/tasks", content=b'{"payload": {"b": 2, "a": 1},\n "type": "anything"}', headers={"Idempotency-Key": '"k"'})
    assert (again.status_code, again.headers["idempotency-replayed"], again.headers["location"]) == (200, "true", first.headers["location"])
    assert again.json() == held
    assert stored(engine) == 1


async def test_the_same_key_with_another_body_is_refused(client: AsyncClient, engine: Engine) -> None:
    await send(client, TASK, "k")
    for body in (TASK | {"priority": 1}, {"type": "no.such.type", "payload": 1}):
        other = await send(client, body, "k")
        assert (other.status_code, slug(other)) == (422, "idempotency-mismatch")
    batch = await send(client, {"tasks": [TASK]}, "k", "/tasks/batch")
    assert (batch.status_code, slug(batch)) == (422, "idempotency-mismatch")
    assert stored(engine) == 1


async def test_a_batch_is_repeated_as_a_whole_and_in_its_order(client: AsyncClient, engine: Engine) -> None:
    body = {"tasks": [{"type": "anything", "payload": n, "unique_key": str(n)} for n in range(50)]}
    first, again = [await send(client, body, "k", "/tasks/batch") for _ in range(2)]
    assert (first.status_code, again.status_code, again.headers["idempotency-replayed"]) == (201, 200, "true")
    assert again.json() == first.json()
    assert stored(engine) == 50


async def test_of_many_at_once_with_one_key_exactly_one_makes_a_task_and_all_get_it(
    app: FastAPI, api_settings: Settings, registry: Registry, engine: Engine
) -> None:
    """From two processes: each of them shares its statements, and they wait for each other's."""
    second = create_app(api_settings, registry)
    async with second.router.lifespan_context(second), client_of(app) as one, client_of(second) as two:
        calls = [send(client, TASK, f"k{n % 3}") for n in range(60) for client in (one, two)]
        answers = await asyncio.gather(*calls)
    assert sorted({answer.status_code for answer in answers}) == [200, 201]
    assert len([answer for answer in answers if answer.status_code == 201]) == 3
    assert len({answer.json()["id"] for answer in answers}) == stored(engine) == 3


async def test_keyed_submissions_share_commits(app: FastAPI, client: AsyncClient) -> None:
    commits: list[Any] = []
    event.listen(app.state.service.engine.sync_engine, "commit", commits.append)
    answers = await asyncio.gather(*(send(client, TASK, str(n)) for n in range(100)))
    assert {answer.status_code for answer in answers} == {201}
    assert len(commits) < 50


async def test_a_refusal_spends_no_key(client: AsyncClient, engine: Engine) -> None:
    body = TASK | {"unique_key": "u"}
    holder = await submit(client, unique_key="u")
    assert (await send(client, body, "k")).status_code == 409
    assert (await send(client, TASK | {"priority": 10}, "l")).status_code == 422
    await client.post(f"/tasks/{holder['id']}/cancel")
    assert (await send(client, body, "k")).status_code == 201
    assert (await send(client, TASK, "l")).status_code == 201
    assert (await send(client, body, "k")).status_code == 200, "the key is asked before the unique_key, which is its own task's"
    assert stored(engine) == 3


async def test_a_replay_is_neither_counted_nor_announced(app: FastAPI, client: AsyncClient) -> None:
    await send(client, TASK, "k")
    seen: list[Any] = []
    app.state.service.submitted = seen.append
    assert (await send(client, TASK, "k")).status_code == 200
    assert seen == []


async def test_a_key_outlives_the_type_that_it_was_used_for(client: AsyncClient, api_settings: Settings) -> None:
    first = (await send(client, TASK, "k")).json()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    later = create_app(api_settings, Registry([], manager))
    async with later.router.lifespan_context(later), client_of(later) as without:
        assert (await send(without, TASK, "k")).json() == first
        assert slug(await send(without, TASK, "new")) == "unknown-task-type"


async def test_a_key_is_its_namespaces_own(client: AsyncClient, engine: Engine) -> None:
    await send(client, TASK, "k")
    with engine.begin() as connection:
        connection.execute(text("UPDATE idempotency_keys SET namespace = 'theirs'"))
    assert (await send(client, TASK | {"priority": 1}, "k")).status_code == 201


async def test_a_key_whose_task_is_not_kept_any_more_is_a_404_and_makes_none(client: AsyncClient, engine: Engine) -> None:
    await send(client, TASK, "k")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tasks"))
    assert (await send(client, TASK, "k")).status_code == 404
    assert stored(engine) == 0


@pytest.mark.parametrize("key", ["", " ", "a b", '"', '"a', '"a\\b"', "x" * 256, '""', "é"])
async def test_a_key_that_is_none_is_refused(client: AsyncClient, key: str) -> None:
    answer = await client.post("/tasks", json=TASK, headers=[(b"Idempotency-Key", key.encode())])
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/Idempotency-Key"


async def test_two_keys_on_one_request_are_refused(client: AsyncClient) -> None:
    answer = await client.post("/tasks", json=TASK, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert answer.status_code == 422


@pytest.mark.parametrize("check", ["?validate_only=true", "/validate"])
async def test_a_check_checks_everything_and_writes_nothing(client: AsyncClient, engine: Engine, check: str) -> None:
    fetch = {"type": "pages.fetch", "payload": {"url": "http://x"}}
    answer = await client.post(f"/tasks{check}", json=fetch, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["queue"], answer.json()["max_attempts"]) == (200, "io", 5)
    assert "id" not in answer.json()
    batch = await client.post(f"/tasks/batch{check}", json={"tasks": [fetch, TASK]})
    assert (batch.status_code, [item["type"] for item in batch.json()["items"]]) == (200, ["pages.fetch", "anything"])
    assert (await client.post(f"/tasks{check}", json={"type": "pages.fetch", "payload": {}})).status_code == 422
    assert stored(engine) == 0
    assert (await send(client, TASK, "k")).status_code == 201, "it has spent no key"
    holder = await submit(client, unique_key="u")
    taken = await client.post(f"/tasks/batch{check}", json={"tasks": [TASK, TASK | {"unique_key": "u"}]})
    assert (taken.status_code, taken.json()["task_id"], taken.json()["errors"][0]["pointer"]) == (409, holder["id"], "/tasks/1/unique_key")
    assert (await client.post("/tasks?validate_only=false", json=TASK)).status_code == 201


@pytest.mark.parametrize(("query", "pointer"), [("validate_only=1", "/validate_only"), ("validate_onyl=true", "/validate_onyl")])
async def test_a_wrong_query_parameter_of_a_submission_is_named(client: AsyncClient, query: str, pointer: str) -> None:
    for path, body in (("/tasks", TASK), ("/tasks/batch", {"tasks": [TASK]})):
        answer = await client.post(f"{path}?{query}", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_a_call_that_only_checks_takes_no_query_parameter(client: AsyncClient) -> None:
    for path, body in (("/tasks/validate", TASK), ("/tasks/batch/validate", {"tasks": [TASK]})):
        answer = await client.post(f"{path}?validate_only=false", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/validate_only")


def test_a_client_that_retries_under_connection_resets_makes_exactly_one_task_each(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    """Each submit is sent three times: cut before the service has it, cut after, and let through. Eight clients at once."""
    server = uvicorn.Server(uvicorn.Config(create_app(api_settings, registry), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        proxy = Proxy(f"http://127.0.0.1:{listening.getsockname()[1]}", free_port("127.0.0.1", 0))
        try:

            def retry(number: int) -> tuple[list[bool], str]:
                """Whether each attempt was cut, and the id in the end."""
                body, word = json.dumps({"type": "anything", "payload": f"task-{number}-"}), f"task-{number}-".encode()
                cut = []
                for forward in (False, True, None):
                    trap = None if forward is None else proxy.cut_at(b"POST /api/v1/tasks", word, forward=forward)
                    try:
                        answer = httpx2.post(
                            f"http://127.0.0.1:{proxy.port}/api/v1/tasks", content=body, headers={"Idempotency-Key": str(number)}, trust_env=False, timeout=60
                        )
                        cut.append(False)
                    except httpx2.TransportError:
                        assert trap is not None
                        assert trap.sprung.is_set()
                        cut.append(True)
                assert answer.status_code in (200, 201), answer.text
                return cut, answer.json()["id"]

            with ThreadPoolExecutor(8) as pool:
                retried = list(pool.map(retry, range(24)))
        finally:
            proxy.close()
            server.should_exit = True
            thread.join(30)
    assert [cut for cut, _ in retried] == [[True, True, False]] * 24
    with engine.connect() as connection:
        made = connection.execute(text("SELECT id::text, payload #>> '{}' FROM tasks")).all()
    assert sorted(row[0] for row in made) == sorted(id_ for _, id_ in retried)
    assert len({row[1] for row in made}) == 24


async def test_a_key_is_for_one_call(client: AsyncClient) -> None:
    one = {"type": "anything", "payload": 1}
    many = {"tasks": [one, one]}
    first = {"Idempotency-Key": "first"}
    assert (await client.post("/tasks/batch", json=many, headers=first)).status_code == 201
    assert (await client.post("/tasks", json=many, headers=first)).status_code == 422
    second = {"Idempotency-Key": "second"}
    assert (await client.post("/tasks", json=one, headers=second)).status_code == 201
    assert (await client.post("/tasks/batch", json=one, headers=second)).status_code == 422
    assert len((await client.get("/tasks")).json()["items"]) == 3
