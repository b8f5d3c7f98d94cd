"""Every line that a role writes is one JSON object, whoever wrote it, and tells which task or request it is about."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import make_url

from tests.stack import Stack, until

PASSWORD = "hunter2hunter2"


@pytest.fixture
def own_stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    environment = {"TASKYARD_LOG__FORMAT": "json", "TASKYARD_LOG__LEVEL": "debug", "TASKYARD_WORKER__PROCESSES": "1", "TASKYARD_WORKER__STOP_GRACE": "1"}
    # PostgreSQL trusts this machine and asks for no password; that one is given is enough to make it a secret.
    secret_url = make_url(database_url).set(password=PASSWORD).render_as_string(hide_password=False)
    made = Stack(secret_url, broker_url, tmp_path, **environment)
    yield made
    made.close()


def told(stack: Stack, role: str) -> list[dict[str, Any]]:
    """A role's lines. Fails at the first that is no JSON object with a time, a level and an event."""
    lines = [json.loads(line) for line in stack.log(role).splitlines()]
    assert all(line.keys() >= {"timestamp", "level", "event", "logger"} for line in lines)
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def seen_from_outside(service: str) -> None:
    """One scrape of the web process shows what the worker did, and who is at work."""

    def shown() -> bool:
        lines = httpx2.get(f"{service}/metrics", timeout=5).text.splitlines()
        return set(lines) >= {
            'taskyard_tasks_finished_total{queue="default",status="failed",type="t.noise"} 1.0',
            'taskyard_tasks_finished_total{queue="default",status="succeeded",type="t.anoise"} 1.0',
            'taskyard_task_wait_seconds_count{queue="default",type="t.noise"} 1.0',
            'taskyard_task_run_seconds_count{queue="default",type="t.anoise"} 1.0',
            'taskyard_tasks_submitted_total{queue="default",type="t.noise"} 1.0',
            "taskyard_workers_alive 1.0",
            "taskyard_dispatcher_alive 1.0",
        }

    until(shown, 30, "the counts of all roles")
    parts = httpx2.get(f"{service}/health/ready", timeout=5).json()["parts"]
    assert parts == dict.fromkeys(("database", "schema", "writes", "dispatcher", "workers", "broker"), "ok")


@pytest.mark.parametrize("command", [("taskyard", "worker"), ("celery", "-A", "taskyard_worker", "worker")], ids=["taskyard", "celery"])
def test_every_line_of_every_role_is_json_and_knows_its_task_or_request(own_stack: Stack, command: tuple[str, ...]) -> None:
    stack = own_stack
    port = free_port()
    stack.start("serve", "taskyard", "serve", "--port", str(port))
    stack.start("dispatcher")
    stack.start("worker", *command)
    stack.ready()
    until(lambda: answers(f"http://127.0.0.1:{port}/health/ready"), 60, "the service")
    answer = httpx2.post(f"http://127.0.0.1:{port}/api/tasks", json={"type": "t.noise", "payload": {}}, headers={"X-Request-ID": "mine-1"})
    noisy = answer.json()["id"]
    other = str(stack.submit("t.anoise"))
    for task in (noisy, other):
        stack.wait(UUID(task))
    seen_from_outside(f"http://127.0.0.1:{port}")
    for role in ("worker", "dispatcher", "serve"):
        assert stack.stop(role) == 0

    [request] = [line for line in told(stack, "serve") if line["event"] == "request.done" and line["path"] == "/api/v1/tasks"]
    assert (request["request_id"], request["task_id"], request["status"]) == ("mine-1", noisy, 201)
    assert told(stack, "dispatcher")
    lines = told(stack, "worker")
    assert "worker.stopping" in [line["event"] for line in lines]
    for task, type_ in ((noisy, "t.noise"), (other, "t.anoise")):
        mine = [line for line in lines if line.get("task_id") == task]
        assert all((line["type"], line["attempt"], line["fence"]) == (type_, 1, 1) for line in mine)
        said = {(line["logger"], line["event"]) for line in mine}
        assert said >= {
            ("stdout", "printed\x1b[31m ***"),
            ("stdout", "half a line, and the other half"),
            ("stderr", "to stderr"),
            ("some.library", "logged"),
            (type_, "told"),
        }
        assert [line for line in mine if line["logger"] == "py.warnings" and "warned" in line["event"]]
    assert [line["thread"] for line in lines if line["event"] == "thread.failed"] == ["unlucky"]
    for role in ("worker", "dispatcher", "serve"):
        assert PASSWORD not in stack.log(role)
        assert "\x1b" not in stack.log(role)


@pytest.mark.parametrize("role", ["serve", "dispatcher", "worker"])
def test_the_last_word_of_a_role_that_can_not_start_is_json_too(role: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKYARD_")} | {"TASKYARD_LOG__FORMAT": "json", "DATABASE_URL": "mysql://x"}
    for wrong in ({}, {"TASKYARD_API__PORTT": "1"}):
        command = [sys.executable, "-m", "taskyard", role]
        ended = subprocess.run(command, env={**environment, "CELERY_BROKER_URL": "nowhere", **wrong}, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1, ended
        assert ended.stdout == ""
        assert [json.loads(line) for line in ended.stderr.splitlines()]
