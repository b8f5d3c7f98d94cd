"""How requests travel: the only part of the client that exists twice, because HTTPX does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Protocol

import httpx2

#: Bytes that one message of a stream may have.
MAX_MESSAGE = 16 * 1024 * 1024


class Wire(Protocol):
    """What the client's calls do to the world."""

    @property
    def http(self) -> httpx2.Client | httpx2.AsyncClient:
        """Who puts requests together."""

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """The answer; with ``stream`` its body is yet to be read."""

    def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        """The messages of an answer that is a stream, as they come."""

    async def read(self, response: httpx2.Response) -> None:
        """Read the body of an answer that was sent as a stream."""

    async def discard(self, response: httpx2.Response) -> None:
        """Be done with an answer."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def close(self) -> None:
        """End all connections."""


class BlockingWire:
    """Blocks. Its coroutines never suspend: see :mod:`taskyard.client.bridge`."""

    def __init__(self, http: httpx2.Client) -> None:
        self.http = http

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        return self.http.send(request, stream=stream)

    async def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        for message in httpx2.EventSource(response, MAX_MESSAGE):
            yield message

    async def read(self, response: httpx2.Response) -> None:
        response.read()

    async def discard(self, response: httpx2.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self.http.close()


class AsyncWire:
    """Suspends."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        return await self.http.send(request, stream=stream)

    async def messages(self, response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        async for message in httpx2.EventSource(response, MAX_MESSAGE):
            yield message

    async def read(self, response: httpx2.Response) -> None:
        await response.aread()

    async def discard(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self.http.aclose()
