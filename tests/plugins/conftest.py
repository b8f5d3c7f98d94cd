"""A real HTTP server on loopback whose answers a test scripts, and which remembers what it was asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "thumbnails"


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: Set to let the server answer; None answers at once.
    wait_for: threading.Event | None = None


@dataclass
class Site:
    """The server: its port, the answers by path, and what was asked."""

    port: int
    answers: dict[str, Answer]
    asked: list[Asked]

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


def _handler_for(answers: dict[str, Answer], asked: list[Asked]) -> type[BaseHTTPRequestHandler]:
    class Scripted(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = answers.get(self.path, Answer(404))
            if answer.wait_for is not None:
                answer.wait_for.wait(30)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            try:
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            """Not on the tests' output."""

    return Scripted


@pytest.fixture
def serve_site() -> Iterator[Callable[..., Site]]:
    """Start servers: ``serve_site({path: Answer})``; ``wrap`` may turn the listening socket into another (TLS)."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, Answer], wrap: Callable[..., object] | None = None) -> Site:
        asked: list[Asked] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(answers, asked))
        server.daemon_threads = True
        if wrap is not None:
            server.socket = wrap(server.socket)  # type: ignore[assignment]  # an SSLSocket is a socket
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return Site(server.server_address[1], answers, asked)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class RawReceiver:
    """What :func:`raw_receiver` did: the bytes that it could send, and whether its connection has ended."""

    port: int
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def raw_receiver(head: bytes, repeat: bytes = b"", times: int = 0) -> Iterator[RawReceiver]:
    """A receiver that takes one request, sends ``head``, then ``repeat`` so many times, and closes: an answer that no HTTP server would give."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        receiver = RawReceiver(listening.getsockname()[1])

        def answer() -> None:
            with suppress(OSError), listening.accept()[0] as connection:
                connection.recv(65536)
                for part in (head, *([repeat] * times)):
                    connection.sendall(part)
                    receiver.sent += len(part)
            receiver.ended.set()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield receiver
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        thread.join(30)


@pytest.fixture(scope="session")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples/thumbnails as pip installs it, for sys.path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder), str(EXAMPLE)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return folder
