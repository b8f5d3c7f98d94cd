"""A plugin's next version renames its type, changes its payload and moves it to the event loop: what the first one stored is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import jsonschema
import pytest

from tests.ground import free_port
from tests.stack import QUICK, Stack, until

pytestmark = pytest.mark.one_pair

FIRST = '''
from pydantic import BaseModel
from taskyard import handler, hookimpl


class Mail(BaseModel):
    to: str


@handler("mail.send")
def send(payload: Mail) -> str:
    """Send a mail."""
    return f"1: {payload.to}"


@hookimpl
def taskyard_handlers():
    return [send]
'''
SECOND = '''
from typing import Any

from pydantic import BaseModel
from taskyard import Context, handler, hookimpl


class Mail(BaseModel):
    recipients: list[str]


def upgrade(stored: Any) -> Any:
    """From version 1, which knew one recipient."""
    return {"recipients": [stored["to"]] if stored["to"] != "nobody" else "nobody"}


@handler("letters.send", aliases=["mail.send"], upgrade=upgrade)
async def send(payload: Mail, ctx: Context) -> str:
    """Send a mail."""
    return f"2: {payload.recipients} as {ctx.type}"


@hookimpl
def taskyard_handlers():
    return [send]
'''


class Versions:
    """The plugin ``letters`` in two versions, and the roles of a stack that run with one of them."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self._paths: dict[int, str] = {}
        for number, source in ((1, FIRST), (2, SECOND)):
            home = folder / f"version-{number}"
            info = home / f"letters-{number}.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: letters\nVersion: {number}.0\n")
            (info / "entry_points.txt").write_text("[taskyard.plugins]\nletters = letters\n")
            (home / "letters.py").write_text(source)
            self._paths[number] = f"{home}:{stack.env['PYTHONPATH']}"

    def start(self, name: str, version: int, *arguments: str) -> None:
        """Start a role with one version of the plugin."""
        role = name.partition("-")[0]
        self.stack.start(name, "taskyard", role, *arguments, env={"PYTHONPATH": self._paths[version]})

    @contextmanager
    def serve(self, version: int) -> Iterator[httpx2.Client]:
        """The REST service with one version."""
        port = free_port()
        self.start("serve", version, "--port", str(port))
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10) as client:
            until(lambda: _is_up(client), 60, "the service")
            yield client
        self.stack.stop("serve")


def _is_up(client: httpx2.Client) -> bool:
    try:
        return client.get("/task-types").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def versions(own_stack: Stack, tmp_path: Path) -> Versions:
    own_stack.env.update(QUICK, TASKYARD_DISPATCH__PARK_DELAY="0.5")
    own_stack.start("dispatcher")
    return Versions(own_stack, tmp_path)


def _submit(client: httpx2.Client, type_: str, payload: dict[str, Any]) -> UUID:
    answer = client.post("/tasks", json={"type": type_, "payload": payload})
    assert answer.status_code == 201, answer.text
    assert answer.json()["type"] == type_
    return UUID(answer.json()["id"])


def _listed(client: httpx2.Client, type_: str) -> set[UUID]:
    return {UUID(item["id"]) for item in client.get("/tasks", params={"type": type_}).json()["items"]}


def test_a_task_that_version_1_stored_is_run_by_version_2_under_its_old_name_and_in_its_old_shape(versions: Versions) -> None:
    stack = versions.stack
    with versions.serve(1) as client:
        old, bad = _submit(client, "mail.send", {"to": "ann"}), _submit(client, "mail.send", {"to": "nobody"})
        broken = _submit(client, "mail.send", {"to": "x"})
    # A row that not even version 1 would have written: its upgrade raises.
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET payload = '{}' WHERE id = %s", (broken,))
    versions.start("worker", 2)
    row = stack.wait(old, seconds=60)
    assert (row["status"], row["type"], row["lane"], row["result"]) == ("succeeded", "mail.send", "sync", "2: ['ann'] as mail.send")
    assert row["payload"] == {"to": "ann"}, "it stays as it was sent"
    row = stack.wait(bad)
    assert (row["status"], row["error"]["code"]) == ("failed", "upgrade-failed")
    assert "/recipients" in row["error"]["message"]
    row = stack.wait(broken)
    assert (row["status"], row["error"]["code"]) == ("failed", "upgrade-failed")
    assert "raised KeyError: 'to'" in row["error"]["message"]
    assert "upgrade" in row["error"]["traceback"]

    with versions.serve(2) as client:
        kind = client.get("/task-types/mail.send").json()
        assert (kind["type"], kind["aliases"]) == ("letters.send", ["mail.send"])
        document = client.get(client.base_url.join("/openapi.json")).json()
        mapping = document["components"]["schemas"]["TaskIn"]["discriminator"]["mapping"]
        assert mapping["mail.send"] == mapping["letters.send"] == "#/components/schemas/SubmitLettersSend"
        validator = jsonschema.Draft202012Validator({**document, "$ref": mapping["mail.send"]})
        validator.validate({"type": "mail.send", "payload": {"recipients": []}})
        assert not validator.is_valid({"type": "mail.sent", "payload": {"recipients": []}})
        new = _submit(client, "mail.send", {"recipients": ["bob"]})
        assert stack.wait(new)["result"] == "2: ['bob'] as mail.send"
        renamed = _submit(client, "letters.send", {"recipients": ["cyd"]})
        assert stack.wait(renamed)["result"] == "2: ['cyd'] as letters.send"
        assert client.post("/tasks", json={"type": "mail.send", "payload": {"to": "ann"}}).status_code == 422, "clients are held to today's shape"
        assert _listed(client, "letters.send") == {old, bad, broken, new, renamed}
        assert _listed(client, "mail.send") == {old, bad, broken, new}, "what is left under the old name"
        action = {"action": "retry", "filter": {"type": "letters.send", "status": "failed"}, "dry_run": True}
        assert client.post("/tasks/actions", json=action).json()["matched"] == 2


def test_while_versions_are_mixed_old_names_run_anywhere_and_new_ones_wait_for_a_new_worker(versions: Versions) -> None:
    stack = versions.stack
    versions.start("worker-1", 1)
    with versions.serve(2) as client:
        stack.ready()
        new = _submit(client, "letters.send", {"recipients": ["ann"]})
        until(lambda: "task.parked" in stack.events(new), 60, "its parking by a worker that does not know the name")
        versions.start("worker-2", 2)
        assert stack.wait(new, seconds=60)["result"] == "2: ['ann'] as letters.send"
        stack.stop("worker-1")
        old = _submit(client, "mail.send", {"recipients": ["bob"]})
        assert stack.wait(old)["status"] == "succeeded"
