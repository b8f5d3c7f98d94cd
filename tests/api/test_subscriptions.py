"""`notify`: a submission asks to be told of its own task, where the operator allows it."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import AsyncClient
from pydantic import SecretStr
from sqlalchemy import Engine, text

from taskyard.settings import DatabaseSettings, DeliverySettings, Settings

from .conftest import submit

pytestmark = pytest.mark.anyio

SECRET = "loft-password-hush"
WISH = {"notifier": "pigeon", "options": {"loft": SECRET}, "events": ["task.submitted", "task.cancelled"]}


@pytest.fixture
def api_settings(database_url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=SecretStr(database_url)), deliveries=DeliverySettings(subscriptions=("pigeon", "owl")))


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT notifier, events, options FROM subscriptions ORDER BY task_id, n")).all())


async def test_a_submission_is_told_by_deliveries_of_its_own_and_its_options_are_never_shown(client: AsyncClient, engine: Engine) -> None:
    answer = await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": [WISH]})
    assert answer.status_code == 201, answer.text
    task = answer.json()
    await client.post(f"/tasks/{task['id']}/cancel")
    found = (await client.get(f"/deliveries?task_id={task['id']}")).json()["items"]
    assert [(one["route"], one["notifier"], one["event"]) for one in found] == [
        ("notify/0", "pigeon", "task.cancelled"),
        ("notify/0", "pigeon", "task.submitted"),
    ]
    assert [tuple(row) for row in rows(engine)] == [("pigeon", ["task.submitted", "task.cancelled"], {"loft": SECRET})]
    for path in (f"/tasks/{task['id']}", f"/tasks/{task['id']}/events", "/tasks", "/deliveries", f"/deliveries/{found[0]['id']}", "/notifiers"):
        shown = await client.get(path)
        assert (shown.status_code, SECRET in shown.text) == (200, False)
    assert SECRET not in answer.text


async def test_the_four_ends_are_told_unless_events_are_named(client: AsyncClient, engine: Engine) -> None:
    await submit(client, notify=[{"notifier": "pigeon"}])
    assert [list(row.events) for row in rows(engine)] == [["task.succeeded", "task.failed", "task.cancelled", "task.expired"]]


async def test_each_task_of_a_batch_has_its_own(client: AsyncClient, engine: Engine) -> None:
    sent = [{"type": "anything", "payload": 1}, {"type": "anything", "payload": 1, "notify": [WISH, WISH]}]
    assert (await client.post("/tasks/batch", json={"tasks": sent})).status_code == 201
    assert len(rows(engine)) == 2


@pytest.mark.parametrize(
    ("notify", "pointer"),
    [
        ([{"notifier": "raven"}], "/notify/0/notifier"),
        ([{"notifier": "owl"}], "/notify/0/notifier"),
        ([WISH, {"notifier": "pigeon", "options": {"loft": 5}}], "/notify/1/options/loft"),
        ([{"notifier": "pigeon", "events": ["task.gone"]}], "/notify/0/events/0"),
        ([{"notifier": "pigeon", "events": ["worker.lost"]}], "/notify/0/events/0"),
        ([{"notifier": "pigeon", "events": []}], "/notify/0/events"),
        ([{"notifier": "pigeon", "evnets": []}], "/notify/0/evnets"),
        ([{}], "/notify/0/notifier"),
        ([WISH] * 6, "/notify"),
        ("pigeon", "/notify"),
    ],
)
async def test_a_mistake_is_named_and_no_secret_is_told(client: AsyncClient, engine: Engine, notify: Any, pointer: str) -> None:
    answer = await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": notify})
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert SECRET not in answer.text
    assert rows(engine) == []


async def test_the_document_names_the_notifiers_that_may_be_asked_for(client: AsyncClient) -> None:
    document = (await client.get("http://test.localhost/openapi.json")).json()
    notify = document["components"]["schemas"]["SubmitAnything"]["properties"]["notify"]
    assert [option["items"]["properties"]["notifier"] for option in notify["anyOf"] if "items" in option] == [{"type": "string", "enum": ["pigeon"]}]


async def test_the_nearest_notifier_is_named(client: AsyncClient) -> None:
    answer = await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": [{"notifier": "pigoen"}]})
    assert "'pigeon'" in answer.json()["errors"][0]["detail"]


class TestWhereTheOperatorAllowsNone:
    @pytest.fixture
    def api_settings(self, database_url: str) -> Settings:
        return Settings(database=DatabaseSettings(url=SecretStr(database_url)))

    async def test_a_submission_may_not_ask(self, client: AsyncClient) -> None:
        answer = await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": [WISH]})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/notify/0/notifier")
        assert (await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": []})).status_code == 201

    async def test_the_document_has_no_word_of_it(self, client: AsyncClient) -> None:
        document = (await client.get("http://test.localhost/openapi.json")).json()
        assert "notify" not in document["components"]["schemas"]["SubmitAnything"]["properties"]


async def test_the_options_of_all_subscriptions_of_a_task_are_bounded(client: AsyncClient) -> None:
    wishes = [{"notifier": "pigeon", "options": {"loft": "x" * 8_000}}] * 2
    assert (await client.post("/tasks?validate_only=true", json={"type": "anything", "payload": 1, "notify": wishes})).status_code == 200
    refused = await client.post("/tasks", json={"type": "anything", "payload": 1, "notify": [*wishes, {"notifier": "pigeon", "options": {"loft": "x" * 500}}]})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"pointer": "/notify", "detail": "expected options of at most 16 KiB of JSON in all"}]
