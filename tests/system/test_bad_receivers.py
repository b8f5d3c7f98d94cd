"""Receivers that answer 500 at first, hang, hang up, redirect or answer without end: tasks go on, and each delivery ends with its cause."""

from __future__ import annotations

import base64
import re
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.stack import Stack, cloned, until

pytestmark = pytest.mark.one_pair

#: Tasks that each receiver is told of.
EACH = 5
ATTEMPTS = 3
FLOOD = 100_000_000
ROUTE = """
[[routes]]
name = "{name}"
notifier = "webhook"
events = ["task.succeeded"]
tags = ["{name}"]
[routes.options]
url = "http://127.0.0.1:{port}/"
secret = "{secret}"
timeout = 1
"""


@dataclass
class Receiver:
    """A server that does to each connection what ``answer`` says, after it has read the request."""

    answer: Callable[[socket.socket, bytes], object]
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=200))

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def start(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(self.listening.accept()[0],), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self.answer(connection, connection.recv(65536))

    def stop(self) -> None:
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def _say(connection: socket.socket, *lines: str) -> None:
    connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())


@dataclass
class Receivers:
    """All the bad ones; ``over`` ends the one that hangs, ``flooded`` counts what was taken of the flood, ``asked`` the tries of each delivery."""

    over: threading.Event = field(default_factory=threading.Event)
    flooded: int = 0
    asked: Counter[bytes] = field(default_factory=Counter)

    def all(self) -> dict[str, Receiver]:
        return {
            "recovers": Receiver(self._recover),
            "hangs": Receiver(lambda *_: self.over.wait()),
            "hangs up": Receiver(lambda connection, _: connection.sendall(b"HTTP/1.1 20")),
            "cuts its body": Receiver(lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")),
            "redirects": Receiver(lambda connection, _: _say(connection, "HTTP/1.1 307 There", "location: http://169.254.169.254/", "content-length: 0")),
            "floods": Receiver(self._flood),
        }

    def _recover(self, connection: socket.socket, request: bytes) -> None:
        """Takes each delivery at its last try."""
        (delivery,) = re.findall(rb"webhook-id: (\S+)", request, re.IGNORECASE)
        self.asked[delivery] += 1
        _say(connection, "HTTP/1.1 500 Not Now" if self.asked[delivery] < ATTEMPTS else "HTTP/1.1 204 No Content", "content-length: 0")

    def _flood(self, connection: socket.socket, request: bytes) -> None:
        _say(connection, "HTTP/1.1 200 OK", f"content-length: {FLOOD}")
        part = b"x" * 100_000
        for _ in range(FLOOD // len(part)):
            connection.sendall(part)
            self.flooded += len(part)


@pytest.fixture
def receivers() -> Iterator[tuple[Receivers, dict[str, Receiver]]]:
    made = Receivers()
    servers = made.all()
    for server in servers.values():
        server.start()
    yield made, servers
    made.over.set()
    for server in servers.values():
        server.stop()


@pytest.fixture
def stack(postgres_url: str, template: str, broker_url: str, tmp_path: Path, receivers: tuple[Receivers, dict[str, Receiver]]) -> Iterator[Stack]:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    routes = [ROUTE.format(name=name, port=server.port, secret=secret) for name, server in receivers[1].items()]
    (tmp_path / "taskyard.toml").write_text("[plugins.webhook]\nallow_private_networks = true\n" + "".join(routes))
    settings = {"WORKER__PROCESSES": "1", "DELIVERIES__MAX_ATTEMPTS": str(ATTEMPTS), "DELIVERIES__BASE": "0.1", "DELIVERIES__FACTOR": "1"}
    with cloned(postgres_url, template) as database_url:
        made = Stack(database_url, broker_url, tmp_path, **{f"TASKYARD_{name}": value for name, value in settings.items()})
        made.env["TASKYARD_CONFIG"] = str(tmp_path / "taskyard.toml")
        made.start("dispatcher")
        made.start("worker")
        yield made.ready()
        made.close()


def _outcomes(stack: Stack, name: str) -> list[tuple[str, int, str]]:
    """Status, tries and last cause of a route's deliveries."""
    with stack.engine.connect() as connection:
        rows = connection.execute(text("SELECT status, tries FROM deliveries WHERE route = :name"), {"name": name}).all()
    return [(row.status, len(row.tries), row.tries[-1]["detail"] if row.tries else "") for row in rows]


def _ended(stack: Stack, name: str) -> bool:
    return [status in ("delivered", "dead") for status, _, _ in _outcomes(stack, name)] == [True] * EACH


def _peak_memory(stack: Stack) -> int:
    """The most that one of the worker's processes has ever held, in bytes."""
    peaks = []
    for process in stack.family("worker"):
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peaks.append(int(found[1]) * 1024 if found else 0)
    return max(peaks)


def test_bad_receivers_hold_no_task_up_and_their_deliveries_end_with_the_cause(stack: Stack, receivers: tuple[Receivers, dict[str, Receiver]]) -> None:
    made, servers = receivers
    before = _peak_memory(stack)
    told = [("t.asleep", {"seconds": 0}, {"tags": [name]}) for name in servers for _ in range(EACH)]
    for task in stack.submit_all(told):
        stack.wait(task, seconds=60)
    untold: list[tuple[str, Any, dict[str, Any]]] = [("t.asleep", {"seconds": 0}, {}) for _ in range(100)]
    for task in stack.submit_all(untold):
        row = stack.wait(task, seconds=60)
        assert (row["status"], row["attempt"], row["lost"]) == ("succeeded", 1, 0)
    assert not made.over.is_set(), "they went on while a receiver hung"
    for name in servers:
        until(partial(_ended, stack, name), 120, f"the end of what {name} is told")
    expected = {
        "recovers": ("delivered", "HTTP 204 No Content"),
        "hangs": ("dead", "retry-later: no answer within 1 s"),
        "hangs up": ("dead", "retry-later: 127.0.0.1: "),
        "cuts its body": ("delivered", "HTTP 200 OK"),
        "redirects": ("dead", "retry-later: HTTP 307 There: a redirect, which is not followed"),
        "floods": ("delivered", "HTTP 200 OK"),
    }
    for name, (status, cause) in expected.items():
        for outcome, tries, detail in _outcomes(stack, name):
            assert (outcome, tries) == (status, ATTEMPTS if status == "dead" or name == "recovers" else 1), name
            assert detail.startswith(cause), name
    # Those that were refused too often before it was well are dead, with what it said.
    assert {(status, detail) for status, _, detail in _outcomes(stack, "recovers")} <= {
        ("delivered", "HTTP 204 No Content"),
        ("dead", "retry-later: HTTP 500 Not Now"),
    }
    assert made.flooded < EACH * 20_000_000, "of 500 MB, what sockets' buffers take"
    assert _peak_memory(stack) - before < 100_000_000
