"""Tables that somebody else has changed: a trigger keeps rows out, or a sequence is behind. Nothing is the client's fault, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import Connection, Engine, text
from structlog.testing import capture_logs

from tests.api.conftest import submit
from tests.databases import cloned

pytestmark = [pytest.mark.anyio, pytest.mark.one_pair]
READY = "http://test.localhost/health/ready"
KEEP_OUT = """
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN NEW.priority < 9 THEN NEW END; END $$;
CREATE TRIGGER keep_out BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION keep_out();
"""
URGENT = {"type": "anything", "payload": 1, "priority": 9}
CALM = {**URGENT, "priority": 5}


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """Of this module's own: its tables are altered."""
    with cloned(postgres_url, template) as url:
        yield url


@pytest.fixture
def owner(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.mark.parametrize("key", [None, "so-and-so"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks", URGENT),
        ("/tasks", {**URGENT, "unique_key": "only"}),
        ("/tasks/batch", {"tasks": [{**URGENT, "unique_key": "one"}, {**URGENT, "unique_key": "other"}]}),
        ("/tasks/batch", {"tasks": [URGENT, URGENT]}),
    ],
)
async def test_a_trigger_that_keeps_tasks_out_makes_them_503_and_the_log_names_it(
    client: AsyncClient, owner: Connection, path: str, body: dict[str, Any], key: str | None
) -> None:
    headers = {"Idempotency-Key": key} if key else {}
    owner.execute(text(KEEP_OUT))
    with capture_logs() as lines:
        answer = await client.post(path, json=body, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["detail"] == "The database can't do this now."
    said = [line for line in lines if line["event"] == "database.refused"]
    assert ["trigger keep_out on tasks" in line["error"] for line in said] == [True]
    assert owner.execute(text("SELECT count(*) FROM tasks")).scalar() == 0
    owner.execute(text("DROP TRIGGER keep_out ON tasks"))
    assert (await client.post(path, json=body, headers=headers)).status_code == 201


async def test_others_of_its_commit_are_taken(client: AsyncClient, owner: Connection) -> None:
    owner.execute(text(KEEP_OUT))
    assert (await client.post("/tasks/batch", json={"tasks": [{**CALM, "unique_key": "a"}, {**URGENT, "unique_key": "b"}]})).status_code == 503
    assert owner.execute(text("SELECT count(*) FROM tasks")).scalar() == 0, "all or none"
    assert (await client.post("/tasks", json=CALM)).status_code == 201


async def test_readiness_names_what_keeps_tasks_out(client: AsyncClient, owner: Connection) -> None:
    owner.execute(text(KEEP_OUT.replace("NEW.priority < 9", "NEW.priority > 9")))
    answer = await client.get(READY)
    assert (answer.status_code, answer.json()["parts"]["writes"]) == (503, "a trial write left no row: trigger keep_out on tasks")
    owner.execute(text("DROP TRIGGER keep_out ON tasks"))
    assert (await client.get(READY)).status_code == 200


@pytest.mark.parametrize("call", ["submit", "cancel", "retry", "action"])
async def test_a_sequence_that_is_behind_makes_calls_503_until_it_is_set(client: AsyncClient, owner: Connection, call: str) -> None:
    tasks = [(await submit(client))["id"] for _ in range(5)]
    await client.post(f"/tasks/{tasks[0]}/cancel")
    requests: dict[str, tuple[str, Any, int]] = {
        "submit": ("/tasks", CALM, 201),
        "cancel": (f"/tasks/{tasks[1]}/cancel", None, 200),
        "retry": (f"/tasks/{tasks[0]}/retry", None, 200),
        "action": ("/tasks/actions", {"action": "retry", "filter": {"status": ["cancelled"]}}, 200),
    }
    path, body, well = requests[call]
    highest = owner.execute(text("SELECT setval('events_id_seq', 1, false), (SELECT max(id) FROM events)")).one()[1]
    with capture_logs() as lines:
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    said = [line["error"] for line in lines if line["event"] == "database.refused"]
    assert len(said) == 1
    assert "pk_events" in said[0]
    assert "taskyard doctor" in said[0]
    owner.execute(text("SELECT setval('events_id_seq', :highest)"), {"highest": highest})
    assert (await client.post(path, json=body)).status_code == well
