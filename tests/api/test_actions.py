"""One verb on all tasks that match a filter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import Engine, event, text

from taskyard import queries
from taskyard_api.routes import actions

from .conftest import force, submit

pytestmark = pytest.mark.anyio


async def act(client: AsyncClient, action: str, filter: Any, **more: Any) -> Any:
    return await client.post("/tasks/actions", json={"action": action, "filter": filter, **more})


async def many(client: AsyncClient, count: int, **options: Any) -> list[dict[str, Any]]:
    answer = await client.post("/tasks/batch", json={"tasks": [{"type": "anything", "payload": n, **options} for n in range(count)]})
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def statuses(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text("SELECT status, count(*) FROM tasks GROUP BY status"))}


async def test_each_action_moves_what_its_verb_moves(client: AsyncClient, engine: Engine) -> None:
    await many(client, 5, tags=["x"])
    await many(client, 2, tags=["y"])
    for action, leads_to in (("hold", "held"), ("release", "pending"), ("cancel", "cancelled"), ("retry", "pending")):
        assert (await act(client, action, {"tag": ["x"]})).json() == {"matched": 5, "changed": 5}
        wanted = {"pending": 7} if leads_to == "pending" else {leads_to: 5, "pending": 2}
        assert statuses(engine) == wanted
    events = (await client.get(f"/tasks/{(await client.get('/tasks?tag=x&limit=1')).json()['items'][0]['id']}/events")).json()["items"]
    assert [e["type"] for e in events] == ["task.submitted", "task.held", "task.released", "task.cancelled", "task.retrying"]


async def test_what_matches_and_may_not_be_moved_is_counted_and_left(client: AsyncClient, engine: Engine) -> None:
    tasks = await many(client, 5)
    force(engine, tasks[0]["id"], "succeeded")
    force(engine, tasks[1]["id"], "running")
    assert (await act(client, "cancel", {})).json() == {"matched": 5, "changed": 4}
    assert statuses(engine) == {"succeeded": 1, "running": 1, "cancelled": 3}
    assert (await client.get(f"/tasks/{tasks[1]['id']}")).json()["cancel_requested"] is True
    assert (await act(client, "cancel", {"status": "running"})).json() == {"matched": 1, "changed": 0}, "it was asked already"


async def test_a_dry_run_changes_nothing(client: AsyncClient, engine: Engine) -> None:
    tasks = await many(client, 5)
    planned = await many(client, 1, delay=3600)
    for task in (tasks[0], planned[0]):
        await client.post(f"/tasks/{task['id']}/hold")
    for task, status in zip(tasks[1:4], ("succeeded", "running", "running"), strict=True):
        force(engine, task["id"], status)
    await client.post(f"/tasks/{tasks[3]['id']}/cancel")
    before = statuses(engine)
    would = {action: (await act(client, action, {}, dry_run=True)).json() for action in ("cancel", "hold", "release", "retry")}
    assert {(one["matched"], one["changed"]) for one in would.values()} == {(6, 0)}
    moves = {action: [(one["status"], one["becomes"], one["count"]) for one in told["would_change"]] for action, told in would.items()}
    assert moves == {
        "cancel": [("held", "cancelled", 2), ("pending", "cancelled", 1), ("running", "running", 1)],
        "hold": [("pending", "held", 1)],
        "release": [("held", "pending", 1), ("held", "scheduled", 1)],
        "retry": [],
    }
    assert statuses(engine) == before
    for action in ("release", "cancel"):
        told = (await act(client, action, {})).json()
        assert told["changed"] == sum(count for _, _, count in moves[action])


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"a": "\0"}, "the character U+0000 can't be in any stored text"),
        ({"\0": "a"}, "the character U+0000 can't be in any stored text"),
        ({"a": ["b"]}, "expected text, a number, a truth value or null"),
        ({"a": {"b": 1}}, "expected text, a number, a truth value or null"),
    ],
)
async def test_metadata_that_no_task_can_have_is_refused_once_with_its_place(client: AsyncClient, metadata: dict[str, Any], said: str) -> None:
    refused = await act(client, "hold", {"metadata": metadata})
    [place] = refused.json()["errors"]
    assert (refused.status_code, place["detail"]) == (422, said)
    assert place["pointer"].startswith("/filter/metadata/")


async def test_an_action_takes_ids_keys_and_metadata(client: AsyncClient, engine: Engine) -> None:
    tasks = await many(client, 4, metadata={"customer": 42})
    other = await submit(client, unique_key="one")
    chosen = {"id": [task["id"] for task in tasks[:2]] + [other["id"]], "metadata": {"customer": 42}}
    assert (await act(client, "hold", chosen)).json() == {"matched": 2, "changed": 2}
    assert (await act(client, "hold", {"metadata": {"customer": "42"}})).json() == {"matched": 0, "changed": 0}
    assert (await act(client, "cancel", {"unique_key": "one"})).json() == {"matched": 1, "changed": 1}
    assert statuses(engine) == {"held": 2, "pending": 2, "cancelled": 1}


async def test_all_filters_must_hold_and_of_several_values_any(client: AsyncClient, engine: Engine) -> None:
    await submit(client, queue="a", priority=1, tags=["t"])
    await submit(client, queue="b", priority=1, tags=["t"])
    await submit(client, queue="a", priority=2, tags=["t"])
    await submit(client, queue="c", priority=1, tags=["u"])
    chosen = {"queue": ["a", "b"], "priority": 1, "tag": "t", "type": "anything", "status": ["pending", "held"], "created_after": "2020-01-01T00:00:00Z"}
    assert (await act(client, "hold", chosen)).json() == {"matched": 2, "changed": 2}
    assert (await act(client, "hold", {"q": "nothing"})).json() == {"matched": 0, "changed": 0}
    assert (await act(client, "hold", {"created_before": "2020-01-01T00:00:00Z"})).json() == {"matched": 0, "changed": 0}


async def test_a_large_action_goes_a_batch_and_a_commit_at_a_time(app: FastAPI, client: AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "PAGE", 30)
    monkeypatch.setattr(actions, "BATCH", 7)
    await many(client, 100)
    commits: list[Any] = []
    event.listen(app.state.service.engine.sync_engine, "commit", commits.append)
    seen: list[str] = []
    app.state.service.moved = lambda row: seen.append(row["status"])
    assert (await act(client, "cancel", {})).json() == {"matched": 100, "changed": 100}
    assert len(commits) == 3 * 5 + 2
    assert seen == ["cancelled"] * 100


async def test_tasks_of_another_namespace_are_not_found(client: AsyncClient, engine: Engine) -> None:
    await many(client, 3)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET namespace = 'theirs'"))
    assert (await act(client, "cancel", {})).json() == {"matched": 0, "changed": 0}
    assert statuses(engine) == {"pending": 3}


async def test_a_unique_key_that_is_taken_keeps_its_own_task_from_being_retried_and_no_other(client: AsyncClient, engine: Engine) -> None:
    for _ in range(2):
        task = await submit(client, unique_key="twice")
        await client.post(f"/tasks/{task['id']}/cancel")
    old = await submit(client, unique_key="taken")
    await client.post(f"/tasks/{old['id']}/cancel")
    await submit(client, unique_key="taken")
    other = await submit(client)
    await client.post(f"/tasks/{other['id']}/cancel")
    assert (await act(client, "retry", {"status": "cancelled"})).json() == {"matched": 4, "changed": 2}
    assert statuses(engine) == {"pending": 3, "cancelled": 2}


async def test_actions_that_meet_do_not_deadlock(client: AsyncClient, engine: Engine) -> None:
    await many(client, 300)
    answers = await asyncio.gather(*(act(client, action, {}) for action in ("hold", "release", "hold", "release", "cancel")))
    assert {answer.status_code for answer in answers} == {200}
    assert statuses(engine) == {"cancelled": 300}


MISTAKES: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "/action"),
    "no filter": ({"action": "cancel"}, "/filter"),
    "null as filter": ({"action": "cancel", "filter": None}, "/filter"),
    "another action": ({"action": "expire", "filter": {}}, "/action"),
    "an unknown name": ({"action": "hold", "filter": {}, "dryrun": True}, "/dryrun"),
    "an unknown filter": ({"action": "hold", "filter": {"statsu": "held"}}, "/filter/statsu"),
    "an unknown status": ({"action": "hold", "filter": {"status": ["done"]}}, "/filter/status/0"),
    "an empty list": ({"action": "hold", "filter": {"tag": []}}, "/filter/tag"),
    "a number as tag": ({"action": "hold", "filter": {"tag": [1]}}, "/filter/tag/0"),
    "text as priority": ({"action": "hold", "filter": {"priority": "1"}}, "/filter/priority"),
    "text as dry_run": ({"action": "hold", "filter": {}, "dry_run": "true"}, "/dry_run"),
    "no time": ({"action": "hold", "filter": {"created_after": "yesterday"}}, "/filter/created_after"),
    "NUL": ({"action": "hold", "filter": {"q": "\x00"}}, "/filter/q"),
}


@pytest.mark.parametrize(("body", "pointer"), MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_named_and_nothing_is_changed(client: AsyncClient, body: Any, pointer: str) -> None:
    answer = await client.post("/tasks/actions", json=body)
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_mistyped_filter_is_answered_with_the_right_one(client: AsyncClient) -> None:
    assert "'status'" in (await act(client, "hold", {"statsu": "held"})).json()["errors"][0]["detail"]


async def test_what_has_started_meanwhile_is_not_meant_any_more(client: AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, starts = await many(client, 2)
    find = queries.matching

    def found_and_then_started(*arguments: Any) -> Any:
        found = find(*arguments)
        force(engine, starts["id"], "running")
        return found

    monkeypatch.setattr(queries, "matching", found_and_then_started)
    assert (await act(client, "cancel", {"status": ["pending"]})).json() == {"matched": 2, "changed": 1}
    assert (await client.get(f"/tasks/{waiting['id']}")).json()["status"] == "cancelled"
    assert not (await client.get(f"/tasks/{starts['id']}")).json()["cancel_requested"]


@pytest.mark.parametrize("wrong", [5, True, 1.5, "status", [], None])
async def test_a_filter_that_is_no_object_is_told_so(client: AsyncClient, wrong: Any) -> None:
    answer = await act(client, "cancel", wrong)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/filter")
