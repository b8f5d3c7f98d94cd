"""A notification that nobody took is kept, shown, and sent again when a person says so: by real roles, to a real receiver."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from tests.stack import Stack, until

pytestmark = pytest.mark.one_pair

SECRET = "whsec_" + base64.b64encode(b"a secret of the redelivery test").decode()
CONFIG = """
[plugins.webhook]
allow_private_networks = true

[[routes]]
name = "hook"
notifier = "webhook"
events = ["task.succeeded"]
types = ["t.[de]cho"]
options = {{ url = "http://127.0.0.1:{port}/", secret = "{secret}" }}
"""


class Receiver(ThreadingHTTPServer):
    """Refuses with ``status`` what it gets, and remembers it: the headers' ids and the event, both verified."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 503
        self.got: list[tuple[str, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        Webhook(SECRET).verify(body, dict(self.headers.items()))
        self.server.got.append((self.headers["webhook-id"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def stack(database_url: str, broker_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Stack]:
    (tmp_path / "taskyard.toml").write_text(CONFIG.format(port=receiver.server_port, secret=SECRET))
    limits = {"TASKYARD_DELIVERIES__BASE": "0.1", "TASKYARD_DELIVERIES__FACTOR": "1", "TASKYARD_DELIVERIES__MAX_ATTEMPTS": "3"}
    made = Stack(database_url, broker_url, tmp_path, TASKYARD_CONFIG=str(tmp_path / "taskyard.toml"), **limits)
    made.start("dispatcher")
    made.start("worker")
    yield made.ready()
    made.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx2.Client]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stack.start("serve", "taskyard", "serve", "--port", str(port))
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as made:

        def answers() -> bool:
            try:
                return made.get("/health/live").is_success
            except httpx2.TransportError:
                return False

        until(answers, 30, "the API")
        yield made


def _listed(client: httpx2.Client, status: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/api/v1/deliveries", params={"status": status}).json()["items"]
    return items


def test_a_dead_delivery_is_listed_and_arrives_when_it_is_sent_again(stack: Stack, receiver: Receiver, client: httpx2.Client) -> None:
    task = stack.submit("t.echo", {"word": "x"})
    (dead,) = until(lambda: _listed(client, "dead"), 30, "the dead delivery")
    assert (dead["task_id"], dead["event"], dead["attempt"], len(dead["tries"]), len(receiver.got)) == (str(task), "task.succeeded", 3, 3, 3)

    receiver.status = 204
    again = client.post(f"/api/v1/deliveries/{dead['id']}/redeliver")
    assert again.status_code == 200, again.text
    assert (again.json()["id"], again.json()["event_id"], again.json()["event"], again.json()["attempt"]) == (
        dead["id"],
        dead["event_id"],
        "task.succeeded",
        0,
    )
    (delivered,) = until(lambda: _listed(client, "delivered"), 30, "the delivery")
    assert _listed(client, "dead") == []
    assert [(said["attempt"], said["outcome"]) for said in delivered["tries"]] == [(1, "failed"), (2, "failed"), (3, "failed"), (1, "delivered")]
    assert len({webhook_id for webhook_id, _ in receiver.got}) == 1, "a receiver can tell that it is the same message"
    assert {event["id"] for _, event in receiver.got} == {f"evt_{dead['event_id']}"}

    client.post(f"/api/v1/deliveries/{dead['id']}/redeliver").raise_for_status()
    until(lambda: len(receiver.got) == 5, 30, "one that was delivered, again")
