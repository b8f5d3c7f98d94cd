"""A task over REST: submitted, looked at, listed, changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine, text

from .conftest import force, placeless, submit

pytestmark = pytest.mark.anyio
CONTRACT = {
    *("type", "payload", "priority", "queue", "run_at", "expires_at", "timeout", "max_attempts", "tags", "metadata", "unique_key"),
    *("id", "status", "attempt", "result", "error", "progress", "created_at", "updated_at", "queued_at", "started_at", "finished_at"),
    *("next_run_at", "cancel_requested", "version", "position", "estimated_start", "parent_id", "namespace"),
}


async def test_a_submission_answers_with_the_task_and_where_it_is(client: AsyncClient) -> None:
    answer = await client.post("/tasks", json={"type": "pages.fetch", "payload": {"url": "http://x"}})
    task = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/tasks/{task['id']}"
    assert set(task) == CONTRACT
    assert UUID(task["id"]).version == 7
    assert placeless((await client.get(f"/tasks/{task['id']}")).json()) == task


async def test_a_task_gets_its_handlers_defaults(client: AsyncClient) -> None:
    task = await submit(client, "pages.fetch", {"url": "http://x"})
    assert (task["queue"], task["priority"], task["timeout"], task["max_attempts"], task["status"]) == ("io", 6, 30.0, 5, "pending")


async def test_what_a_client_sends_is_stored_as_sent(client: AsyncClient) -> None:
    payload = {"url": "http://x", "when": "2030-01-01T00:00:00+01:00"}
    assert (await submit(client, "pages.fetch", payload))["payload"] == payload
    odd: Any
    for odd in (None, 0, 1.5, "é\u2028😀", [], {"": {"a/b~c": [None, True]}}, 10**40):
        assert (await submit(client, payload=odd))["payload"] == odd


async def test_every_option_is_kept(client: AsyncClient) -> None:
    options: dict[str, Any] = {
        "priority": 9,
        "queue": "q-1",
        "timeout": 0.5,
        "max_attempts": 7,
        "tags": ["a", "b c"],
        "metadata": {"k": [1]},
        "unique_key": "u",
    }
    task = await submit(client, **options, expires_at="2031-01-01T00:00:00+02:00", run_at="2030-01-01T00:00:00Z")
    assert {name: task[name] for name in options} == options
    assert datetime.fromisoformat(task["expires_at"]) == datetime(2030, 12, 31, 22, tzinfo=UTC)
    assert (task["status"], task["run_at"], task["next_run_at"]) == ("scheduled", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z")


async def test_null_means_not_given(client: AsyncClient) -> None:
    options: dict[str, Any] = dict.fromkeys(("priority", "queue", "run_at", "delay", "expires_at", "timeout", "max_attempts", "tags", "metadata", "unique_key"))
    task = await submit(client, **options)
    assert (task["priority"], task["tags"], task["metadata"]) == (5, [], {})


async def test_a_delay_is_a_start_ahead(client: AsyncClient) -> None:
    task = await submit(client, delay=60)
    assert task["status"] == "scheduled"
    ahead = datetime.fromisoformat(task["run_at"]) - datetime.fromisoformat(task["created_at"])
    assert ahead == timedelta(seconds=60)


@pytest.mark.parametrize("base", ["/api", "/api/v1"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_same_call_answers_under_both_bases_with_and_without_a_slash(client: AsyncClient, base: str, slash: str) -> None:
    answer = await client.post(f"http://test.localhost{base}/tasks{slash}", json={"type": "anything", "payload": 1})
    assert answer.status_code == 201
    assert (await client.get(f"http://test.localhost{base}/tasks/{answer.json()['id']}{slash}")).status_code == 200
    missing = await client.get(f"http://test.localhost{base}/tasks/0{slash}")
    assert missing.json()["instance"] == f"{base}/tasks/0{slash}"


async def test_a_retry_is_refused_while_its_unique_key_is_in_use_and_names_the_holder(client: AsyncClient) -> None:
    first = await submit(client, unique_key="k")
    await client.post(f"/tasks/{first['id']}/cancel")
    holder = await submit(client, unique_key="k")
    refused = await client.post(f"/tasks/{first['id']}/retry")
    assert (refused.status_code, refused.json()["task_id"]) == (409, holder["id"])
    await client.post(f"/tasks/{holder['id']}/cancel")
    assert (await client.post(f"/tasks/{first['id']}/retry")).json()["status"] == "pending"


async def test_a_unique_key_in_use_is_a_conflict_that_names_its_holder(client: AsyncClient) -> None:
    first = await submit(client, unique_key="k")
    answer = await client.post("/tasks", json={"type": "anything", "payload": 1, "unique_key": "k"})
    assert answer.status_code == 409
    assert answer.json()["type"].endswith("unique-conflict")
    assert answer.json()["task_id"] == first["id"]
    await client.post(f"/tasks/{first['id']}/cancel")
    second = await submit(client, unique_key="k")
    retried = await client.post(f"/tasks/{first['id']}/retry")
    assert (retried.status_code, retried.json()["task_id"]) == (409, second["id"])


async def test_people_move_a_task_by_verbs(client: AsyncClient) -> None:
    task = await submit(client)
    for verb, status in (("hold", "held"), ("release", "pending"), ("cancel", "cancelled"), ("retry", "pending")):
        answer = await client.post(f"/tasks/{task['id']}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (200, status)
    history = (await client.get(f"/tasks/{task['id']}/events")).json()["items"]
    assert [event["type"] for event in history] == ["task.submitted", "task.held", "task.released", "task.cancelled", "task.retrying"]
    assert all(set(event) == {"id", "namespace", "type", "time", "task_id", "attempt", "data"} for event in history)


async def test_a_move_that_the_status_forbids_says_what_is_allowed(client: AsyncClient) -> None:
    task = await submit(client)
    await client.post(f"/tasks/{task['id']}/cancel")
    answer = await client.post(f"/tasks/{task['id']}/hold")
    body = answer.json()
    assert (answer.status_code, body["type"].rpartition(":")[2]) == (409, "illegal-transition")
    assert (body["status"], body["task_status"], body["allowed"]) == (409, "cancelled", ["retry"])


async def test_cancel_of_a_running_task_asks_it_to_stop(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    force(engine, task["id"], "running")
    for _ in range(2):
        answer = await client.post(f"/tasks/{task['id']}/cancel")
        assert (answer.status_code, answer.json()["status"], answer.json()["cancel_requested"]) == (200, "running", True)


async def patch(client: AsyncClient, task: dict[str, Any], **changes: Any) -> Any:
    return await client.patch(f"/tasks/{task['id']}", json=changes)


async def test_fields_of_a_waiting_task_can_be_changed(client: AsyncClient) -> None:
    task = await submit(client, tags=["a"], metadata={"a": 1})
    changed = (await patch(client, task, priority=9, tags=["b"], metadata={"b": [None]}, expires_at="2031-01-01T00:00:00Z")).json()
    assert (changed["priority"], changed["tags"], changed["metadata"], changed["expires_at"]) == (9, ["b"], {"b": [None]}, "2031-01-01T00:00:00Z")
    assert changed["version"] == task["version"] + 1
    later = (await patch(client, task, run_at="2030-01-01T00:00:00Z", expires_at=None)).json()
    assert (later["status"], later["next_run_at"], later["expires_at"]) == ("scheduled", "2030-01-01T00:00:00Z", None)
    now = (await patch(client, task, run_at=None)).json()
    assert (now["status"], now["run_at"], now["next_run_at"]) == ("pending", None, None)


async def test_a_status_in_a_patch_stands_for_a_verb(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    held = (await patch(client, task, status="held", priority=1)).json()
    assert (held["status"], held["priority"]) == ("held", 1)
    assert (await patch(client, task, status="pending")).json()["status"] == "pending"
    cancelled = (await patch(client, task, status="cancelled", metadata={"why": "x"})).json()
    assert (cancelled["status"], cancelled["metadata"]) == ("cancelled", {"why": "x"})
    again = (await patch(client, task, status="pending", priority=8)).json()
    assert (again["status"], again["priority"]) == ("pending", 8)
    force(engine, task["id"], "succeeded")
    assert (await patch(client, task, status="pending")).status_code == 409


async def test_a_patch_that_fails_in_part_changes_nothing(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    force(engine, task["id"], "running")
    before = (await client.get(f"/tasks/{task['id']}")).json()
    assert (await patch(client, task, status="held", tags=["new"])).status_code == 409
    assert (await client.get(f"/tasks/{task['id']}")).json() == before


async def test_a_task_of_another_namespace_is_not_there(client: AsyncClient, engine: Engine) -> None:
    task = await submit(client)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    for method, rest in (("GET", ""), ("PATCH", ""), ("POST", "/cancel"), ("GET", "/events")):
        answer = await client.request(method, f"/tasks/{task['id']}{rest}", json={"priority": 1} if method == "PATCH" else None)
        assert answer.status_code == 404
    assert (await client.get("/tasks")).json()["items"] == []


async def test_answers_say_that_their_type_is_not_to_be_guessed(client: AsyncClient) -> None:
    for path in ("/tasks", "/nothing"):
        assert (await client.get(path)).headers["x-content-type-options"] == "nosniff"
