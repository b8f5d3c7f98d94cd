"""The curl lines of the pages do what the pages say, against what `make run` starts: `taskyard up`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.taskyard_up import taskyard_up

from .markdown import ROOT, blocks

SHOWN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(short_tmp: Path) -> Iterator[str]:
    """The address of a `taskyard up` on a free port, with embedded parts."""
    with taskyard_up(short_tmp / "docs") as address:
        yield address


def _requests(page: Path) -> list[tuple[str, str, dict[str, str], str | None]]:
    """(method, url, headers, body) of each curl line."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("curl ")]
    return [_parse(shlex.split(line)[1:]) for line in lines]


def _parse(words: list[str]) -> tuple[str, str, dict[str, str], str | None]:
    url, headers, body = "", {}, None
    rest = iter(words)
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
        elif word not in ("-s", "-i", "-sN"):
            url = word
    return ("POST" if body else "GET"), url, headers, body


def _send(service: str, request: tuple[str, str, dict[str, str], str | None]) -> httpx2.Response:
    method, url, headers, body = request
    assert url.startswith(SHOWN)
    return httpx2.request(method, url.replace(SHOWN, service), headers=headers, content=body, timeout=30)


def _ended(service: str, request: tuple[str, str, dict[str, str], str | None]) -> dict[str, Any]:
    """The only task that a list shows, once it has ended."""
    end = time.monotonic() + 30
    while True:
        (task,) = _send(service, request).json()["items"]
        if task["finished_at"]:
            return dict(task)
        assert time.monotonic() < end, task
        time.sleep(0.05)


def test_the_readmes_first_task_is_accepted_and_succeeds(service: str) -> None:
    submit, newest, types = _requests(ROOT / "README.md")
    answer = _send(service, submit)
    assert answer.status_code == 201, answer.text
    task = _ended(service, newest)
    assert (task["id"], task["status"], task["result"]) == (answer.json()["id"], "succeeded", {"text": "hello"})
    assert "demo.echo" in [item["type"] for item in _send(service, types).json()["items"]]


def test_the_clients_guide_submits_and_finds_its_task(service: str) -> None:
    submit, keyed, found, waiting, live = _requests(ROOT / "docs" / "clients.md")
    assert [_send(service, keyed).status_code for _ in range(2)] == [201, 200]
    answer = _send(service, submit)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"].endswith(answer.json()["id"])
    assert _ended(service, found)["status"] == "succeeded"
    waited = _send(service, waiting)
    assert (waited.status_code, waited.json()["status"], waited.headers["preference-applied"]) == (201, "succeeded", "wait=30")
    with httpx2.stream(live[0], live[1].replace(SHOWN, service), timeout=30) as events:
        assert (events.status_code, events.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
