"""Many tasks in one request: all or none, in the order sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine, event, text

from taskyard_api.models import TaskOut
from taskyard_api.routes import submissions

from .conftest import placeless, submit

pytestmark = pytest.mark.anyio


async def batch(client: AsyncClient, *tasks: Any) -> Any:
    return await client.post("/tasks/batch", json={"tasks": tasks})


def task(payload: Any = None, **options: Any) -> dict[str, Any]:
    return {"type": "anything", "payload": payload, **options}


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM tasks")).scalar_one())


async def test_a_thousand_tasks_are_answered_in_the_order_sent_and_share_a_commit(app: FastAPI, client: AsyncClient, engine: Engine) -> None:
    # Each commits itself.
    statements: list[str] = []
    event.listen(app.state.service.engine.sync_engine, "after_cursor_execute", lambda *said: statements.append(said[2]))
    answer = await batch(client, *(task(n) for n in range(1000)))
    items = answer.json()["items"]
    assert answer.status_code == 201, answer.text
    assert [item["payload"] for item in items] == list(range(1000))
    assert len({item["id"] for item in items}) == stored(engine) == 1000
    assert len([statement for statement in statements if "INSERT INTO tasks" in statement]) == 1


@pytest.mark.parametrize("more", [{}, {"run_at": "2030-01-01T00:00:00.5+02:00", "expires_at": "2031-01-01T00:00:00-01:00", "unique_key": "u"}])
@pytest.mark.parametrize("sent", [task(), task({"a": [1.5, "é😀", None]}, priority=9, queue="q", timeout=7, max_attempts=2, tags=["a"], metadata={"k": {}})])
async def test_a_submission_answers_what_a_look_at_the_task_shows(client: AsyncClient, sent: dict[str, Any], more: dict[str, Any]) -> None:
    (first,) = (await batch(client, sent | more)).json()["items"]
    assert placeless((await client.get(f"/tasks/{first['id']}")).json()) == first
    assert list(first) == list(TaskOut.model_fields)
    await client.post(f"/tasks/{first['id']}/cancel")
    second = (await client.post("/tasks", json=sent | more)).json()
    assert placeless((await client.get(f"/tasks/{second['id']}")).json()) == second


async def test_one_mistake_refuses_the_whole_batch_and_all_mistakes_are_told_with_their_places(client: AsyncClient, engine: Engine) -> None:
    tasks = [task(n) for n in range(30)]
    tasks[7] = task(priority=10, tagz=[])
    tasks[17] = {"type": "pages.fetch", "payload": {"url": "nonsense"}}
    tasks[20] = {"type": "pages.fetsh", "payload": {}}
    tasks[29] = "no object"  # type: ignore[call-overload]
    answer = await batch(client, *tasks)
    problem = answer.json()
    assert (answer.status_code, problem["type"].rpartition(":")[2]) == (422, "invalid-request")
    told = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert set(told) == {"/tasks/7/priority", "/tasks/7/tagz", "/tasks/17/payload/url", "/tasks/20/type", "/tasks/29"}
    assert "'tags'" in told["/tasks/7/tagz"]
    assert stored(engine) == 0


async def test_an_unknown_type_in_a_batch_is_answered_with_near_ones(client: AsyncClient) -> None:
    problem = (await batch(client, task(), {"type": "pages.fetsh", "payload": {}})).json()
    assert (problem["type"].rpartition(":")[2], problem["near"]) == ("unknown-task-type", ["pages.fetch"])
    assert [error["pointer"] for error in problem["errors"]] == ["/tasks/1/type"]


async def test_of_many_mistakes_twenty_are_told(client: AsyncClient) -> None:
    assert len((await batch(client, *[task(priority=10)] * 100)).json()["errors"]) == 20


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/tasks"),
        ({"tasks": []}, "/tasks"),
        ({"tasks": {}}, "/tasks"),
        ({"tasks": [task()] * 1001}, "/tasks"),
        ({"taks": [task()], "tasks": [task()]}, "/taks"),
    ],
    ids=["no tasks", "an empty list", "an object", "1,001 tasks", "a name too many"],
)
async def test_a_batch_of_another_form_is_refused(client: AsyncClient, engine: Engine, body: Any, pointer: str) -> None:
    answer = await client.post("/tasks/batch", json=body)
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert stored(engine) == 0


async def test_a_unique_key_in_use_refuses_the_whole_batch_and_names_its_holder_and_its_place(client: AsyncClient, engine: Engine) -> None:
    holder = await submit(client, unique_key="k")
    answer = await batch(client, task(), task(unique_key="other"), task(unique_key="k"))
    problem = answer.json()
    assert (answer.status_code, problem["type"].rpartition(":")[2], problem["task_id"]) == (409, "unique-conflict", holder["id"])
    assert [error["pointer"] for error in problem["errors"]] == ["/tasks/2/unique_key"]
    assert stored(engine) == 1
    assert (await submit(client, unique_key="other"))["unique_key"] == "other", "the batch holds no key"


async def test_two_tasks_of_a_batch_can_not_have_one_unique_key(client: AsyncClient, engine: Engine) -> None:
    answer = await batch(client, task(unique_key="k"), task(), task(unique_key="k"))
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "/tasks/2/unique_key", "detail": "/tasks/0 has the same"}]
    assert stored(engine) == 0


async def test_of_concurrent_batches_with_one_unique_key_one_is_submitted_and_no_part_of_the_others(client: AsyncClient, engine: Engine) -> None:
    """In opposite orders, beside single submissions: nobody waits for ever, and nobody is hurt."""
    calls = [batch(client, *[task(n, unique_key=str(key)) for key in (range(5) if n % 2 else range(4, -1, -1))]) for n in range(10)]
    singles = [submit(client, payload=n) for n in range(20)]
    answers, _ = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*singles))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
    (won,) = [answer.json()["items"] for answer in answers if answer.status_code == 201]
    assert {answer.json()["task_id"] for answer in answers if answer.status_code == 409} <= {item["id"] for item in won}
    assert stored(engine) == 5 + 20


async def test_a_batch_is_counted_and_announced_like_single_tasks(app: FastAPI, client: AsyncClient) -> None:
    seen: list[Any] = []
    service = app.state.service
    service.submitted = seen.append
    await batch(client, task(), task(queue="q"))
    assert [(row["queue"], row["status"]) for row in seen] == [("default", "pending"), ("q", "pending")]


async def test_other_requests_get_their_turns_while_few_tasks_of_a_batch_take_long() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def slow() -> Iterator[None]:
        """Refused ones, such as those with wrong templates, take as long as right ones."""
        for _ in range(5):
            until = time.monotonic() + submissions.TURN
            while time.monotonic() < until:
                pass
            yield None

    beside = asyncio.create_task(others())
    assert await submissions._unhurried(slow()) == []
    assert turns >= 5
    beside.cancel()
