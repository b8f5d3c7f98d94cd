"""While an installation is upgraded, processes of this version work on the schema of a later one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, inspect, text

from taskyard_migrations import runner
from tests.stack import Stack, until

ROUTE = """
[[routes]]
name = "ends"
notifier = "witness"
events = ["task.succeeded"]
"""


def expand(engine: Engine) -> str:
    """What the migrations of a later version may do to every table; answers the revision that they bring."""
    revision = runner.next_id()
    with engine.begin() as connection:
        for table in inspect(engine).get_table_names():
            if table != "taskyard_alembic_version":
                connection.execute(text(f"ALTER TABLE {table} ADD COLUMN later_word text, ADD COLUMN later_count int NOT NULL DEFAULT 7"))
                connection.execute(text(f"CREATE INDEX ix_{table}_later ON {table} (later_count)"))
        connection.execute(text("UPDATE taskyard_alembic_version SET version_num = :revision"), {"revision": revision})
    return revision


@pytest.fixture
def stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "taskyard.toml").write_text(ROUTE)
    made = Stack(database_url, broker_url, tmp_path, TASKYARD_CONFIG=str(tmp_path / "taskyard.toml"))
    yield made
    made.close()


def test_roles_work_on_the_schema_of_a_later_version(stack: Stack) -> None:
    expand(stack.engine)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stack.start("dispatcher")
    stack.start("worker")
    stack.start("serve", "taskyard", "serve", "--port", str(port))
    stack.ready()
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        def ready() -> bool:
            try:
                return client.get("/health/ready").is_success
            except httpx2.TransportError:
                return False

        until(ready, 30, "the web process to be ready")
        submitted = client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": "x"}})
        assert submitted.status_code == 201, submitted.text
        task = submitted.json()["id"]
        until(lambda: client.get(f"/api/v1/tasks/{task}").json()["status"] == "succeeded", 30, "success")
        held = client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": "y"}, "delay": 3600}).json()["id"]
        for verb, status in (("hold", "held"), ("release", "scheduled"), ("cancel", "cancelled"), ("retry", "pending")):
            assert client.post(f"/api/v1/tasks/{held}/{verb}").json()["status"] == status
        until(lambda: client.get(f"/api/v1/tasks/{held}").json()["status"] == "succeeded", 30, "success of the second")
        until(lambda: client.get("/api/v1/deliveries?status=delivered").json()["items"], 30, "a notification")
        assert client.get("/metrics").is_success


def test_an_upgrade_by_the_version_before_changes_nothing_and_is_no_error(stack: Stack, database_url: str) -> None:
    revision = expand(stack.engine)
    runner.upgrade(database_url)
    assert runner.current(database_url) == revision
    for command in ("upgrade", "current"):
        said = subprocess.run([sys.executable, "-m", "taskyard", "db", command], env=stack.env, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert f"{revision}" in said.stdout + said.stderr
        assert "newer" in said.stdout + said.stderr
