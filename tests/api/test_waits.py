"""`Prefer: wait`: whoever would rather wait is answered when the task has ended, and nobody asks the database meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine, event, text

from taskyard_api.prefer import wait_of

from .conftest import force, placeless, submit

pytestmark = pytest.mark.anyio
LONG = {"Prefer": "wait=60"}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # the condition is the database's
            await asyncio.sleep(0.01)


def waiting(app: FastAPI) -> int:
    """Requests that wait, and are known to the row that they wait for."""
    with_row = app.state.service.waits._waiting
    return sum(map(len, with_row.values()))


def awaited(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM tasks WHERE awaited")).scalar_one())


async def test_a_look_that_waits_is_answered_when_the_task_has_ended(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    looks = [asyncio.create_task(client.get(f"/tasks/{task['id']}", headers=LONG)) for _ in range(3)]
    await until(lambda: awaited(engine))
    assert (await client.post(f"/tasks/{task['id']}/hold")).json()["version"] == 2, "to wait is no change"
    assert (await client.post(f"/tasks/{task['id']}/cancel")).json()["status"] == "cancelled"
    for answer in await asyncio.gather(*looks):
        assert (answer.status_code, answer.json()["status"], answer.json()["version"]) == (200, "cancelled", 3)
        assert (answer.headers["preference-applied"], answer.headers["etag"]) == ("wait=60", '"3"')
    assert waiting(app) == 0


async def test_a_submission_that_waits_is_answered_201_with_the_task_as_it_ended(client: AsyncClient, engine: Engine) -> None:
    submitting = asyncio.create_task(client.post("/tasks", json={"type": "anything", "payload": 1}, headers=LONG))
    await until(lambda: awaited(engine))
    (task,) = (await client.get("/tasks")).json()["items"]
    await client.post(f"/tasks/{task['id']}/cancel")
    answer = await submitting
    assert (answer.status_code, answer.json()["status"], answer.headers["preference-applied"]) == (201, "cancelled", "wait=60")
    assert answer.headers["location"].endswith(task["id"])
    again = await client.get(f"/tasks/{task['id']}", headers=LONG)
    assert again.json() == answer.json(), "a task that has ended is not waited for"


@pytest.mark.parametrize("prefer", ["wait=0", "wait=1"])
async def test_when_the_time_is_over_the_task_is_answered_as_it_is(app: FastAPI, client: AsyncClient, prefer: str) -> None:
    submitted = await client.post("/tasks", json={"type": "anything", "payload": 1}, headers={"Prefer": prefer})
    looked = await client.get(f"/tasks/{submitted.json()['id']}", headers={"Prefer": prefer})
    assert (submitted.status_code, looked.status_code) == (201, 200)
    assert submitted.json() == placeless(looked.json())
    assert looked.json()["status"] == "pending"
    assert waiting(app) == 0


async def test_a_repeated_submission_waits_as_the_first_does(client: AsyncClient, engine: Engine) -> None:
    headers = LONG | {"Idempotency-Key": "k"}
    sending = [asyncio.create_task(client.post("/tasks", json={"type": "anything", "payload": 1}, headers=headers)) for _ in range(2)]
    await until(lambda: awaited(engine))
    (task,) = (await client.get("/tasks")).json()["items"]
    await client.post(f"/tasks/{task['id']}/cancel")
    answers = await asyncio.gather(*sending)
    assert sorted(answer.status_code for answer in answers) == [200, 201]
    assert {answer.json()["status"] for answer in answers} == {"cancelled"}


async def test_a_thousand_waits_are_all_answered_and_none_takes_a_connection(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    batch = {"tasks": [{"type": "anything", "payload": n} for n in range(1000)]}
    tasks = (await client.post("/tasks/batch", json=batch)).json()["items"]
    looks = [asyncio.create_task(client.get(f"/tasks/{task['id']}", headers=LONG)) for task in tasks]
    await until(lambda: awaited(engine) == 1000)
    await until(lambda: app.state.service.engine.pool.checkedout() == 0)
    statements: list[str] = []
    event.listen(app.state.service.engine.sync_engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    assert (await client.get("/queues")).status_code == 200
    asked = len(statements)
    await asyncio.sleep(1.1)
    assert [statement for statement in statements[asked:] if "tasks" in statement] == [], "a request that waits asks nothing"
    assert (await client.post("/tasks/actions", json={"action": "cancel", "filter": {}})).json() == {"matched": 1000, "changed": 1000}
    assert {answer.json()["status"] for answer in await asyncio.gather(*looks)} == {"cancelled"}


async def test_a_wait_for_many_holds_no_row_while_another_transaction_holds_one_of_them(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    """Else the two deadlock: the other one may want the rest, as a worker's commit does that claims some tasks and finishes others."""
    first, second = sorted([(await submit(client))["id"], (await submit(client))["id"]])
    with engine.connect() as other:
        other.execute(text("SELECT 1 FROM tasks WHERE id = :id FOR UPDATE"), {"id": second})
        looks = [asyncio.create_task(client.get(f"/tasks/{id_}", headers=LONG)) for id_ in (first, second)]
        await until(lambda: awaited(engine) == 1)
        other.execute(text("SET LOCAL lock_timeout = '1s'"))
        other.execute(text("UPDATE tasks SET status = 'cancelled', finished_at = now() WHERE id = ANY (CAST(:ids AS uuid[]))"), {"ids": [first, second]})
        other.execute(text("SELECT pg_notify('taskyard_ended', :id)"), {"id": first})
        other.commit()
    assert {(await look).json()["status"] for look in looks} == {"cancelled"}
    assert waiting(app) == 0


async def test_what_ended_while_the_listening_connection_was_lost_is_found_when_it_is_back(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    looking = asyncio.create_task(client.get(f"/tasks/{task['id']}", headers=LONG))
    await until(lambda: awaited(engine))
    listener = "query LIKE 'LISTEN %' AND application_name = 'taskyard-api-apart' AND datname = current_database()"

    def listening() -> list[int]:
        with engine.connect() as connection:
            return list(connection.execute(text(f"SELECT pid FROM pg_stat_activity WHERE {listener}")).scalars())

    await until(listening)
    # Ended without a word: only a look can find it.
    force(engine, task["id"], "succeeded")
    assert not looking.done()
    with engine.begin() as connection:
        assert connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listener}")).scalars().all() == [True]
    assert (await looking).json()["status"] == "succeeded"


async def test_a_task_that_is_not_there_is_not_waited_for(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    assert (await client.get(f"/tasks/{task['id']}", headers=LONG)).status_code == 404
    assert waiting(app) == 0


async def test_a_service_that_stops_answers_those_who_wait(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    looking = asyncio.create_task(client.get(f"/tasks/{task['id']}", headers=LONG))
    await until(lambda: awaited(engine))
    await app.state.service.waits.close()
    assert (await looking).json()["status"] == "pending"


async def test_a_wait_and_a_known_version_go_together(client: AsyncClient) -> None:
    task = await submit(client, delay=60)
    answer = await client.get(f"/tasks/{task['id']}", headers={"Prefer": "wait=0", "If-None-Match": '"1"'})
    assert answer.status_code == 304


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (["wait=10"], 10),
        (["respond-async, WAIT=10"], 10),
        (["return=minimal", 'wait = "7"; foo=bar'], 7),
        (["wait=100000"], 60),
        (["wait=1, wait=2"], 1),
        (["wait=0"], 0),
        (["wait"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=x, handling=lenient"], None),
        (["waiting=5"], None),
        ([""], None),
    ],
)
async def test_a_preference_is_read_as_rfc_7240_has_it_and_ignored_if_it_makes_no_sense(given: list[str] | None, seconds: int | None) -> None:
    assert wait_of(given) == seconds
