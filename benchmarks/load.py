"""A lean HTTP load client, run in a process of its own: ``python -m benchmarks.load LOAD`` takes a JSON object and prints one.

``post`` loads send a body again and again: each connection sends the next one when the last is answered (a closed loop). It reads no
more of an answer than its status and its length, so that one client process is enough for one server process.

``end`` loads submit single tasks and wait until each can be read as ``succeeded``: in a closed loop too, or (with ``rate``) so many a
second, whatever the server makes of it; then a latency counts from the moment at which the task was to be submitted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

ONE = '{"type":"bench.sync","payload":{"number":1}}'
PATH = "/api/v1/tasks"
#: Seconds between two looks at a task, first and longest, and how they grow.
LOOKS = (0.02, 0.5, 1.5)
#: Seconds that a server may take over a task that is waited for.
PATIENCE = 60


@dataclass(frozen=True)
class Load:
    """What to send. ``waits``: the server is asked to answer when a task has ended (``Prefer: wait``, RFC 7240); else it is polled."""

    url: str
    connections: int
    seconds: float
    kind: str = "post"
    path: str = PATH
    body: str = ONE
    rate: float | None = None
    waits: bool = False

    def told(self) -> str:
        """As this module's argument."""
        return json.dumps(asdict(self))


def request(load: Load, method: str, path: str, body: str = "", headers: str = "") -> bytes:
    """One HTTP/1.1 request as bytes."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(load.url).netloc}\r\n{headers}"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n"
    return f"{head}\r\n{body}".encode()


class Answers(asyncio.Protocol):
    """One connection. ``answered`` is called with each whole answer: its status, and all of its bytes."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._received.lower().find(b"content-length:", 0, end)
        length = int(self._received[at + 15 : self._received.index(b"\r", at)])
        if len(self._received) < end + 4 + length:
            return
        status, body = int(self._received[9:12]), bytes(self._received[end + 4 :])
        self._received.clear()
        self.answered(status, body)

    def answered(self, status: int, body: bytes) -> None:
        """An answer is there."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Send no more."""
        if self._transport is not None:
            self._transport.close()


class Poster(Answers):
    """Posts until ``until`` (a time of the performance counter)."""

    def __init__(self, sent: bytes, until: float, done: asyncio.Future[None]) -> None:
        super().__init__()
        self._request = sent
        self._until = until
        self.done = done
        self._sent_at = 0.0
        self.latencies: list[float] = []
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def answered(self, status: int, body: bytes) -> None:
        if status == 201:
            self.latencies.append(time.perf_counter() - self._sent_at)
        else:
            self.refused += 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        if self._sent_at < self._until:
            self.write(self._request)
        elif not self.done.done():
            self.done.set_result(None)
            self.close()


class Line(Answers):
    """A connection on which one coroutine at a time asks."""

    _answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(self, sent: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.write(sent)
        return await asyncio.wait_for(self._answer, PATIENCE)

    def answered(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))


async def post(load: Load) -> dict[str, object]:
    """Requests a second that were answered by a 201, the latency of each in seconds, and how many answers were none."""
    parts, loop = urlsplit(load.url), asyncio.get_running_loop()
    sent = request(load, "POST", load.path, load.body)
    began = time.perf_counter()
    posters = [Poster(sent, began + load.seconds, loop.create_future()) for _ in range(load.connections)]
    for poster in posters:
        await loop.create_connection(lambda poster=poster: poster, parts.hostname or "127.0.0.1", parts.port or 80)  # type: ignore[misc]  # mypy can't infer a lambda's default
    await asyncio.gather(*(poster.done for poster in posters))
    latencies = [latency for poster in posters for latency in poster.latencies]
    return _told(latencies, time.perf_counter() - began, sum(poster.refused for poster in posters))


async def end_to_end(load: Load) -> dict[str, object]:
    """Tasks a second that were read as succeeded, and the seconds that each took."""
    parts, loop = urlsplit(load.url), asyncio.get_running_loop()
    lines = [(await loop.create_connection(Line, parts.hostname or "127.0.0.1", parts.port or 80))[1] for _ in range(load.connections)]
    began = time.perf_counter()
    if load.rate is None:
        rounds = await asyncio.gather(*(_closed(load, line, began + load.seconds) for line in lines))
        lives = [life for lives in rounds for life in lives]
    else:
        lives = await _steady(load, lines, began)
    took = time.perf_counter() - began
    for line in lines:
        line.close()
    latencies = [life for life in lives if life is not None]
    return _told(latencies, took, len(lives) - len(latencies))


async def _closed(load: Load, line: Line, until: float) -> list[float | None]:
    lives = []
    while (began := time.perf_counter()) < until:
        succeeded = await _live(load, line)
        lives.append(time.perf_counter() - began if succeeded else None)
    return lives


async def _steady(load: Load, lines: list[Line], began: float) -> list[float | None]:
    assert load.rate is not None
    free: asyncio.Queue[Line] = asyncio.Queue()
    for line in lines:
        free.put_nowait(line)

    async def one(due: float) -> float | None:
        line = await free.get()
        succeeded = await _live(load, line)
        free.put_nowait(line)
        return time.perf_counter() - due if succeeded else None

    started = []
    for number in range(int(load.rate * load.seconds)):
        due = began + number / load.rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        started.append(asyncio.ensure_future(one(due)))
    return list(await asyncio.gather(*started))


async def _live(load: Load, line: Line) -> bool:
    """Submit a task, and return when it is readable as succeeded; False if the server refused one of the requests."""
    prefer = "Prefer: wait=30\r\n" if load.waits else ""
    status, body = await line.ask(request(load, "POST", load.path, load.body, prefer))
    pause, longest, growth = LOOKS
    while status < 400 and (task := json.loads(body))["status"] != "succeeded":
        if not load.waits:
            await asyncio.sleep(pause)
            pause = min(longest, pause * growth)
        status, body = await line.ask(request(load, "GET", f"{load.path}/{task['id']}", headers=prefer))
    return status < 400


def _told(latencies: list[float], took: float, refused: int) -> dict[str, object]:
    return {"rate": len(latencies) / took, "latencies": latencies, "refused": refused}


if __name__ == "__main__":
    asked = Load(**json.loads(sys.argv[1]))
    answer = json.dumps(uvloop.run(post(asked) if asked.kind == "post" else end_to_end(asked))).encode()
    # A print of more than a pipe holds lost its end, on a pipe that something had made non-blocking.
    os.set_blocking(1, True)
    while answer:
        answer = answer[os.write(1, answer) :]
