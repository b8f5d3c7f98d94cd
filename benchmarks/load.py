"""A lean HTTP load client, run in a process of its own: ``python -m benchmarks.load URL CONNECTIONS SECONDS`` prints JSON.

Each connection sends the next request when the last is answered (a closed loop). It reads no more of an answer than its
status and its length, so that one client process is enough for one server process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop

BODY = b'{"type":"bench.sync","payload":{"number":1}}'


class Poster(asyncio.Protocol):
    """One connection that posts until ``until`` (a time of the performance counter)."""

    def __init__(self, head: bytes, until: float, done: asyncio.Future[None]) -> None:
        self._request = head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        self._until = until
        self._done = done
        self._received = bytearray()
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.latencies: list[float] = []
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._received.lower().find(b"content-length:", 0, end)
        length = int(self._received[at + 15 : self._received.index(b"\r", at)])
        if len(self._received) < end + 4 + length:
            return
        self.latencies.append(time.perf_counter() - self._sent_at)
        self.refused += not self._received.startswith(b"HTTP/1.1 201")
        self._received.clear()
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        if self._sent_at < self._until:
            self._transport.write(self._request)
        elif not self._done.done():
            self._done.set_result(None)
            self._transport.close()


async def post(url: str, connections: int, seconds: float) -> dict[str, object]:
    """Post for so long; requests a second, every latency in seconds, and how many answers were no 201."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n".encode()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    posters = [Poster(head, began + seconds, loop.create_future()) for _ in range(connections)]
    for poster in posters:
        await loop.create_connection(lambda poster=poster: poster, parts.hostname or "127.0.0.1", parts.port or 80)  # type: ignore[misc]  # mypy can't infer a lambda's default
    await asyncio.gather(*(poster._done for poster in posters))
    took = time.perf_counter() - began
    latencies = [latency for poster in posters for latency in poster.latencies]
    return {"rate": len(latencies) / took, "latencies": latencies, "refused": sum(poster.refused for poster in posters)}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(post(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
