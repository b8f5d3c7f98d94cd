"""`taskyard deliveries` and `taskyard notifiers` against the real REST service and its database."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uuid_utils.compat as uuid7
import uvicorn
from pydantic import SecretStr
from sqlalchemy import Engine

from taskyard import deliveries, lifecycle
from taskyard.deliveries import Tried
from taskyard.plugins import load_plugins_for
from taskyard.records import NewTask
from taskyard.routes import sync_routes
from taskyard.settings import DatabaseSettings, Route, Settings
from taskyard_api.app import create_app

pytestmark = pytest.mark.one_pair

OLD, NEW = Route(name="old", notifier="log", events=("task.submitted",)), Route(name="new", notifier="log", events=("task.submitted",))


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    settings = Settings(database=DatabaseSettings(url=SecretStr(database_url)), routes=(OLD, NEW))
    server = uvicorn.Server(uvicorn.Config(create_app(settings, load_plugins_for(settings)), log_config=None, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def submit(engine: Engine, count: int) -> None:
    new = [NewTask(uuid7.uuid7(), "demo.work", {}, "default", "sync", 5, 60.0, 3) for _ in range(count)]
    with engine.begin() as connection:
        lifecycle.submit(connection, new)


def kill(engine: Engine) -> None:
    """Bring every delivery to its end, as dead."""
    with engine.begin() as connection:
        for row in deliveries.claim(connection, [due.id for due in deliveries.dispatch(connection, 100, 60, 8)], 60):
            deliveries.finish(connection, [Tried(row["id"], row["fence"], "dead", "HTTP 500", duration=0.5)], 8)


def test_deliveries_are_listed_shown_and_sent_again(tmp_path: Path, url: str, engine: Engine) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "taskyard", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"], "TASKYARD_URL": url}, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    with engine.begin() as connection:
        sync_routes(connection, [OLD])
    submit(engine, 3)
    kill(engine)
    listed: list[dict[str, Any]] = json.loads(run("deliveries", "list", "--status", "dead", "--route", "old", "--event", "task.submitted", "--json"))["items"]
    assert [one["status"] for one in listed] == ["dead"] * 3
    assert "failed: HTTP 500" in run("deliveries", "list", "--limit", "1")
    assert "--cursor" in run("deliveries", "list", "--limit", "1")
    shown = run("deliveries", "show", listed[0]["id"])
    assert all(word in shown for word in ("dead", "HTTP 500", "0.50", "task.submitted", listed[0]["task_id"]))
    assert "1 found, 0 sent again" in run("deliveries", "redeliver", "--task", listed[0]["task_id"], "--dry-run")
    assert "pending" in run("deliveries", "redeliver", listed[0]["id"])
    assert "3 found, 2 sent again" in run("deliveries", "redeliver", "--route", "old")
    assert "not both" in run("deliveries", "redeliver", code=2)
    assert "There is no delivery 999999 here." in run("deliveries", "show", "999999", code=1)
    assert "old, new" in run("notifiers", "list")


def test_past_events_go_to_a_new_route(tmp_path: Path, database_url: str, engine: Engine) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "taskyard", "notifiers", "replay", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    submit(engine, 3)
    with engine.begin() as connection:
        sync_routes(connection, [NEW])
    assert "3 events read; 3 would go to the route 'new'." in run("--since", "1h", "--route", "new", "--dry-run")
    assert "3 events read; 3 go to the route 'new'." in run("--since", "1h", "--route", "new")
    assert json.loads(run("--since", "2020-01-01T00:00:00Z", "--route", "new", "--json")) == {"read": 3, "sent": 0, "wanted": 0}
    assert "No dispatcher has started with a route 'nwe'" in run("--since", "1h", "--route", "nwe", code=1)
    assert "or how long ago" in run("--since", "yesterday", "--route", "new", code=2)


def test_queues_are_listed_paused_and_resumed(tmp_path: Path, url: str, engine: Engine) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "taskyard", "queues", *arguments, "--url", url]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    submit(engine, 2)

    def state() -> list[str]:
        return next(line.split() for line in run("list").splitlines() if line.startswith("default"))

    assert state()[1:5] == ["no", "worker", "2", "0"]
    assert "2 tasks wait" in run("pause", "default")
    assert state()[1:4] == ["paused", "2", "0"]
    assert json.loads(run("list", "--json"))["items"][0]["paused"] is True
    assert "No live worker serves it" in run("resume", "default")
    with engine.begin() as connection:
        lifecycle.register_worker(connection, uuid7.uuid7(), "w1", ["default"], {"sync": 1})
    assert state()[1:4] == ["served", "2", "0"]
    assert "Did you mean 'default'" in run("pause", "defautl", code=1)
