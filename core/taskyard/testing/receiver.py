"""A real HTTP server on loopback to test notifiers and handlers against: it records requests, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; the headers' names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises ValueError: it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answers: after ``delay`` seconds; with ``close`` it says nothing and hangs up."""

    status: int = 200
    body: str | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    close: bool = False


class Receiver:
    """The server. Requests that no answer was planned for get ``otherwise``, which is a plain 200."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.otherwise = Answer()
        self._planned: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _speaker(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address. Any path below it is answered."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def answer(self, *answers: Answer | int) -> None:
        """Plan what the next requests get, in this order; a number is a status."""
        with self._changed:
            self._planned.extend(Answer(each) if isinstance(each, int) else each for each in answers)

    def wait(self, count: int = 1, timeout: float = 30.0) -> list[Received]:
        """Wait until so many requests have come, and give them all. ``timeout`` is in seconds.

        Raises:
            TimeoutError: fewer came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came within {timeout:g} s")
            return list(self.requests)

    def close(self) -> None:
        """Stop it; answers that wait for their delay come at once."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, request: Received) -> Answer:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            answer = self._planned.popleft() if self._planned else self.otherwise
        self._closing.wait(answer.delay)
        return answer


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that is closed at the end of the block."""
    started = Receiver()
    try:
        yield started
    finally:
        started.close()


def _speaker(owner: Receiver) -> type[BaseHTTPRequestHandler]:
    class Speaker(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = owner._take(Received(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            if answer.close:
                return
            content = answer.body.encode() if isinstance(answer.body, str) else answer.body
            # The sender may have gone: its timeout is what some tests are about.
            with suppress(OSError):
                self.send_response(answer.status)
                for name, value in {"content-length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond

        def log_message(self, format: str, *args: object) -> None:
            """Not on the tests' output."""

    return Speaker
