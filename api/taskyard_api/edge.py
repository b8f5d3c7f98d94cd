"""The outermost layer, as plain ASGI: one address for each path, a bound on bodies, headers, an id and a log line for each request,
and no error that escapes.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskyard.metrics import Tally
from taskyard_api.draining import Draining
from taskyard_api.errors import BodyTooSlow, TooLarge
from taskyard_api.problems import INTERNAL, MEDIA_TYPE, internal, stopping
from taskyard_api.sse import HEAD
from taskyard_api.watch import ROUTED, Watch

log = structlog.get_logger(__name__)
BASE = "/api/v1"
#: How much of a body that nobody wants is read and dropped before the answer, and for how long at most.
DRAIN_BYTES = 32 * 1024 * 1024
DRAIN_SECONDS = 3.0
#: The status that logs and counts show where the client left before there was one.
GONE = 499
#: Seconds that a body may take to arrive.
BODY_SECONDS = 60.0
# Answers are for programs: no browser is to guess their type, show them in a frame, or tell others where they came from.
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"frame-ancestors 'none'"), (b"referrer-policy", b"no-referrer")]
_CACHE = b"cache-control"
_PRIVATE = (_CACHE, b"private, no-cache")
_CLOSE = (b"connection", b"close")


class Edge:
    """Wraps the application. ``max_body_bytes`` bounds what a request may send; ``own`` counts requests; ``draining`` says when the process stops.
    ``root_path`` is the prefix that a proxy strips.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, own: Tally, draining: Draining, root_path: str = "") -> None:
        self._app = app
        self._draining = draining
        self._root_path = root_path
        self._own = own
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = Watch(scope["headers"], self._own)
        routed = canonical(scope["path"])
        # ASGI's path includes the prefix that a proxy has stripped: Starlette takes it off before routing. A prefix that was not stripped stays.
        root = self._root_path
        scope = {**scope, "path": root + routed, ROUTED: routed, "taskyard.path": scope["path"]} | ({"root_path": root} if root else {})
        if scope["method"] == "HEAD":
            scope["method"], scope[HEAD], send = "GET", True, without_body(send)
        bound = structlog.contextvars.bind_contextvars(request_id=watch.id)
        try:
            await self._serve(scope, receive, send, watch)
        finally:
            watch.end(scope, BASE)
            structlog.contextvars.reset_contextvars(**bound)
            structlog.contextvars.unbind_contextvars("key", "key_id")

    async def _serve(self, scope: Scope, receive: Receive, send: Send, watch: Watch) -> None:
        started = False
        body = Body(scope, receive)

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                watch.status = message["status"]
                if body.unread:
                    await body.drain()
                headers = [*message.get("headers", ()), *_HEADERS, watch.header]
                if not any(name == _CACHE for name, _ in headers):
                    headers.append(_PRIVATE)
                if self._draining.begun:
                    headers.append(_CLOSE)
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, counted(scope, body.receive, self._limit), answer)
        except asyncio.CancelledError:
            # The server stops and waits no longer. It would answer 500 for what it has cancelled.
            if started or not self._draining.begun:
                raise
            # There is no time to read on, either.
            body.unread = False
            await stopping(scope["taskyard.path"])(scope, body.receive, answer)
        except ClientDisconnect:
            # It left before its body was here: nobody is to be answered, and nothing is wrong.
            watch.status = GONE
        except Exception as error:
            response = _internal(error, scope["taskyard.path"])
            if started:
                raise
            await response(scope, body.receive, answer)


def _internal(error: Exception, asked: str) -> ASGIApp:
    id_ = uuid.uuid4().hex
    log.error("request.failed", id=id_, path=asked, exc_info=error)
    return Response(json.dumps(internal(id_, asked)), INTERNAL.status, media_type=MEDIA_TYPE)


def without_body(send: Send) -> Send:
    """``send`` for HEAD: what GET would answer, without the content (RFC 9110, 9.3.2)."""

    async def sending(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sending


def canonical(path: str) -> str:
    """The one path that is routed: without a trailing slash, and under /api/v1 where the client said /api."""
    if path.endswith("/") and path != "/":
        path = path[:-1]
    if path.startswith("/api/") and not (path.startswith(BASE + "/") or path == BASE):
        path = BASE + path.removeprefix("/api")
    return path


def counted(scope: Scope, receive: Receive, limit: int) -> Receive:
    """``receive`` that raises TooLarge once a body is longer than ``limit`` bytes, or says that it will be; and BodyTooSlow when it takes longer
    than BODY_SECONDS.

    Starlette's own limit answers with plain text, whatever error handlers say; the contract asks for a problem.
    """
    total = 0
    coming = True
    deadline: float | None = None

    async def counting() -> Message:
        nonlocal total, coming, deadline
        if total == 0 and _announced(scope) > limit:
            raise TooLarge(limit)
        if coming:
            deadline = deadline or asyncio.get_running_loop().time() + BODY_SECONDS
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(BODY_SECONDS) from None
        else:
            # What comes after the body is the client's leave, which has no time.
            message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            coming = bool(message.get("more_body"))
            if total > limit:
                raise TooLarge(limit)
        return message

    return counting


class Body:
    """A request's body on its way in: knows whether there is more of it."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        names = {name for name, _ in scope["headers"]}
        # A client that expects "100 Continue" sends nothing before it is answered (RFC 9110, 10.1.1).
        self.unread = bool(names & {b"content-length", b"transfer-encoding"}) and b"expect" not in names
        self._receive = receive

    async def receive(self) -> Message:
        """The next part."""
        message = await self._receive()
        self.unread = self.unread and bool(message.get("more_body"))
        return message

    async def drain(self) -> None:
        """Read what is left, for a while, and drop it: a connection that is closed while its client still sends is reset, and
        many clients never see the answer then.
        """
        left = DRAIN_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))


def _announced(scope: Scope) -> int:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(length) if length.isdigit() else 0
