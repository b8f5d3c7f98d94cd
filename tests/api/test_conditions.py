"""ETag, If-Match and If-None-Match: nobody overwrites what they have not seen, and nobody is sent what they have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from httpx2 import AsyncClient

from .conftest import placeless, submit

pytestmark = pytest.mark.anyio


async def test_every_answer_with_one_task_has_its_etag(client: AsyncClient) -> None:
    submitted = await client.post("/tasks", json={"type": "anything", "payload": 1}, headers={"Idempotency-Key": "k"})
    path = f"/tasks/{submitted.json()['id']}"
    answers = [
        submitted,
        await client.get(path),
        await client.patch(path, json={"priority": 9}),
        await client.post(f"{path}/hold"),
        await client.post("/tasks", json={"type": "anything", "payload": 1}, headers={"Idempotency-Key": "k"}),
        await client.head(path),
    ]
    assert [answer.headers["etag"] for answer in answers] == ['"1"', '"1"', '"2"', '"3"', '"3"', '"3"']
    assert [answer.json()["version"] for answer in answers[:-1]] == [1, 1, 2, 3, 3]


CALLS = [("PATCH", "", {"priority": 9}), *[("POST", f"/{verb}", None) for verb in ("cancel", "hold", "release", "retry")]]


@pytest.mark.parametrize(("method", "rest", "body"), CALLS, ids=["patch", "cancel", "hold", "release", "retry"])
async def test_a_change_of_a_version_that_is_gone_is_refused_and_changes_nothing(client: AsyncClient, method: str, rest: str, body: Any) -> None:
    task = await submit(client)
    before = (await client.patch(f"/tasks/{task['id']}", json={"tags": ["new"]})).json()
    for stale in ('"1"', 'W/"2"', '"1", "3"', '"other"', '""', '"99999999999999999999"'):
        answer = await client.request(method, f"/tasks/{task['id']}{rest}", json=body, headers={"If-Match": stale})
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2], answer.json()["version"]) == (412, "version-conflict", 2), stale
    assert placeless((await client.get(f"/tasks/{task['id']}")).json()) == before


@pytest.mark.parametrize("given", ['"1"', '"7", "1"', "*", '  "1" ,W/"2"'])
async def test_a_change_of_the_version_that_is_there_is_made(client: AsyncClient, given: str) -> None:
    task = await submit(client)
    assert (await client.post(f"/tasks/{task['id']}/hold", headers={"If-Match": given})).json()["status"] == "held"


async def test_of_many_that_change_one_version_one_succeeds(client: AsyncClient) -> None:
    task = await submit(client)
    answers = await asyncio.gather(*(client.patch(f"/tasks/{task['id']}", json={"metadata": {"n": n}}, headers={"If-Match": '"1"'}) for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9


@pytest.mark.parametrize("given", ["1", '"1', '"1" "2"', "*, *", "", '"a b"'])
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_a_condition_that_is_none_is_refused(client: AsyncClient, header: str, given: str) -> None:
    task = await submit(client)
    method = "PATCH" if header == "If-Match" else "GET"
    answer = await client.request(method, f"/tasks/{task['id']}", json={"priority": 1}, headers={header: given})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{header}")


async def test_a_condition_on_a_task_that_is_not_there_is_a_404(client: AsyncClient) -> None:
    path = "/tasks/01a207b1-3bb7-72d7-b038-6c026bc18488"
    assert (await client.post(f"{path}/cancel", headers={"If-Match": '"1"'})).status_code == 404
    assert (await client.get(path, headers={"If-None-Match": '"1"'})).status_code == 404


async def test_who_has_the_version_that_is_there_gets_a_304_without_content(client: AsyncClient) -> None:
    task = await submit(client, delay=60)
    path = f"/tasks/{task['id']}"
    for known in ('"1"', 'W/"1"', '"0", "1"', "*"):
        answer = await client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"1"')
    await client.post(f"{path}/hold")
    assert (await client.get(path, headers={"If-None-Match": '"1"'})).json()["status"] == "held"


async def test_an_etag_is_compared_letter_by_letter(client: AsyncClient) -> None:
    task = await submit(client)
    for tag in ('"01"', '"001"', '"0"'):
        assert (await client.patch(f"/tasks/{task['id']}", json={"priority": 9}, headers={"If-Match": tag})).status_code == 412
