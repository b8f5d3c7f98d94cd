"""Server-sent events as the HTML standard has them (section 9.2), over plain ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from taskyard.errors import TaskyardError
from taskyard.notifiers import Event

#: Seconds after which a client whose stream has ended should come back.
RETRY = 2
#: Seconds that a client may take to read what was sent to it.
PATIENCE = 30.0
#: Bytes that are sent at once.
PART = 65_536
OPENING = f"retry: {RETRY * 1000}\n\n".encode()
HEARTBEAT = b": still here\n\n"
MEDIA_TYPE = "text/event-stream"
#: Where our server leaves in a request's scope how to cut its connection.
ABORT = "taskyard.abort"
#: Marks a request that was HEAD: who asks only for the headers does not wait for the end.
HEAD = "taskyard.head"


def message(id_: int, event: Event) -> bytes:
    """An event: its number is what Last-Event-ID brings back, its data a CloudEvent. JSON has no line break that SSE would see."""
    return f"event: {event.type}\nid: {id_}\ndata: {json.dumps(event.to_cloudevent(), separators=(',', ':'))}\n\n".encode()


def unnamed(message: bytes) -> bytes:
    """The same message without its name: an EventSource gives it to ``onmessage``, which hears nothing that has a name."""
    return message.partition(b"\n")[2]


def parts(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Messages joined, but not to more than :data:`PART` bytes: what was handed to a connection stays in memory until it is taken."""
    waiting: list[bytes] = []
    size = 0
    for one in messages:
        if waiting and size + len(one) > PART:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(one)
        size += len(one)
    if waiting:
        yield b"".join(waiting)


def failure(error: TaskyardError) -> bytes:
    """Why a stream ends, as its last message."""
    return f"event: error\ndata: {json.dumps({'detail': str(error)})}\n\n".encode()


class EventStream(Response):
    """Sends what a generator yields, until it ends, the client goes, or takes nothing for :data:`PATIENCE` seconds."""

    media_type = MEDIA_TYPE

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        # Proxies that buffer would hold events back; nginx is told by a header of its own.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        if scope.get(HEAD):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b""})
            return
        sending = asyncio.create_task(self._send(send, scope.get(ABORT, _nothing)))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait({sending, leaving})
            if isinstance(self._content, AsyncGenerator):
                await self._content.aclose()
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send(self, send: Send, abort: Callable[[], None]) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._content:
            try:
                async with asyncio.timeout(PATIENCE):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except TimeoutError:
                # A polite end would wait until what was sent is taken.
                abort()
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _nothing() -> None:
    """A server that is not ours closes the connection in its own way."""


async def _disconnected(receive: Receive) -> None:
    asked: Any = None
    while asked is None or asked["type"] != "http.disconnect":
        asked = await receive()
