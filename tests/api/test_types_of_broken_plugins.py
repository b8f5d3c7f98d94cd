"""A task type whose plugin is broken now is unavailable, and not unknown: its client tries again, and need not change anything."""

from __future__ import annotations

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import Engine

from taskyard import known_types

pytestmark = pytest.mark.anyio


def note(engine: Engine, **owners: str) -> None:
    """As a worker or a dispatcher does when the plugins work there. Names in arguments have no dots."""
    with engine.begin() as connection:
        known_types.note(connection, {name.replace("_", "."): plugin for name, plugin in owners.items()})


async def send(client: AsyncClient, *types: str) -> Response:
    if len(types) == 1:
        return await client.post("/tasks", json={"type": types[0], "payload": 1})
    return await client.post("/tasks/batch", json={"tasks": [{"type": type_, "payload": 1} for type_ in types]})


@pytest.mark.parametrize("types", [("ledger.book",), ("anything", "ledger.book", "anything")], ids=["one", "batch"])
async def test_it_is_unavailable_and_its_plugin_is_named(client: AsyncClient, engine: Engine, types: tuple[str, ...]) -> None:
    note(engine, ledger_book="broken", ledger_close="broken")
    answer = await send(client, *types)
    problem = answer.json()
    assert (answer.status_code, problem["type"].rpartition(":")[2], answer.headers["Retry-After"]) == (503, "unavailable", "30")
    assert (problem["plugin"], problem["task_type"]) == ("broken", "ledger.book")
    assert problem["detail"] == (
        "The plugin 'broken', which brings the task type 'ledger.book', has failed to load on this service. Submit the task again once it is mended."
    )


@pytest.mark.parametrize("path", ["/tasks?validate_only=true", "/tasks/validate"])
async def test_a_check_tells_the_same(client: AsyncClient, engine: Engine, path: str) -> None:
    note(engine, ledger_book="broken")
    answer = await client.post(path, json={"type": "ledger.book", "payload": 1})
    assert (answer.status_code, answer.json()["plugin"]) == (503, "broken")


@pytest.mark.parametrize("owner", [None, "sample", "gone"])
async def test_a_type_that_no_broken_plugin_is_known_for_is_unknown_and_they_are_named(client: AsyncClient, engine: Engine, owner: str | None) -> None:
    if owner is not None:
        note(engine, ledger_book=owner)
    answer = await send(client, "ledger.book")
    problem = answer.json()
    assert (answer.status_code, problem["type"].rpartition(":")[2]) == (422, "unknown-task-type")
    assert problem["detail"].endswith("Plugins that failed to load here, and may bring it: broken.")


async def test_a_type_is_its_latest_plugins(client: AsyncClient, engine: Engine) -> None:
    note(engine, ledger_book="broken")
    note(engine, ledger_book="sample")
    assert (await send(client, "ledger.book")).status_code == 422
    note(engine, ledger_book="broken")
    note(engine)
    assert (await send(client, "ledger.book")).status_code == 503
