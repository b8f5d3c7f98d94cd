"""Whoever is slow, endless or malformed below HTTP's surface is refused or cut off, and holds up nobody."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from pydantic import SecretStr
from structlog.testing import capture_logs

from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, DatabaseSettings, Settings
from taskyard_api import edge, protocol
from taskyard_api.app import create_app
from taskyard_api.command import server_of
from tests.databases import cloned

from .conftest import client_of

Connect = Callable[[], socket.socket]
POST = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def connect(postgres_url: str, template: str, registry: Registry) -> Iterator[Connect]:
    """Opens connections to a real server, whose patience is short."""
    with cloned(postgres_url, template) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADER_SECONDS", 0.5)
        patch.setattr(edge, "BODY_SECONDS", 0.5)
        server = server_of(create_app(Settings(database=DatabaseSettings(url=SecretStr(url))), registry))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = Thread(target=server.run, args=([listening],))
            thread.start()
            yield lambda: socket.create_connection(listening.getsockname(), timeout=30)
            server.should_exit = True
            thread.join(30)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes, or has answered a request by its length."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def is_served(connect: Connect) -> bool:
    with connect() as connection:
        connection.sendall(GET + b"Connection: close\r\n\r\n")
        return status(answer(connection)) == 200


@pytest.mark.parametrize("begun", [b"", b"GET /api", GET, GET + b"X-Slow: a"], ids=["nothing", "half a line", "some headers", "half a header"])
def test_headers_that_do_not_end_in_time_end_the_connection(connect: Connect, begun: bytes) -> None:
    with connect() as connection:
        connection.sendall(begun)
        assert status(answer(connection)) == 408
    assert is_served(connect)


@pytest.mark.parametrize("endless", [b"X-Many: 1\r\n" * 1000, b"X" * 10_000], ids=["many headers", "one header"])
def test_headers_that_are_too_long_end_the_connection(connect: Connect, endless: bytes) -> None:
    with connect() as connection:
        connection.sendall(GET)
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(endless)
                sent += len(endless)
        except OSError:
            pass
        assert sent < 20_000_000, "it was taken as long as it came"
    assert is_served(connect)


def test_a_slow_body_is_a_408_that_says_so(connect: Connect) -> None:
    for head in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        with connect() as connection:
            connection.sendall(POST + b"Connection: close\r\n" + head)
            said = answer(connection)
            assert status(said) == 408
            assert json.loads(said.partition(b"\r\n\r\n")[2])["type"].endswith("invalid-request")
    assert is_served(connect)


def test_an_endless_chunked_body_is_a_413(connect: Connect) -> None:
    with connect() as connection:
        connection.sendall(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(40):
                connection.sendall(chunk)
        except OSError:
            pass
        assert status(answer(connection)) == 413
    assert is_served(connect)


MALFORMED = {
    "a bare CR": GET + b"X-A: a\rb\r\n\r\n",
    "NUL": GET + b"X-A: a\x00b\r\n\r\n",
    "a header without a name": GET + b": b\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no length": POST + b"Content-Length: x\r\n\r\n{}",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_http_is_a_400_and_the_end(connect: Connect, sent: bytes) -> None:
    with connect() as connection:
        connection.sendall(sent)
        assert status(answer(connection)) == 400
    assert is_served(connect)


def test_a_connection_that_is_kept_may_rest_longer_than_headers_may_take(connect: Connect) -> None:
    with connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert status(connection.recv(65536)) == 200
        time.sleep(1.0)
        connection.sendall(GET + b"Connection: close\r\n\r\n")
        assert b"HTTP/1.1 200" in answer(connection)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/tasks", "/nothing", "http://test.localhost/docs"])
async def test_every_answer_has_the_headers_that_keep_browsers_careful(client: AsyncClient, path: str) -> None:
    headers = (await client.get(path, headers={"Origin": "https://evil.example"})).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "private, no-cache"
    assert not any(name.startswith("access-control") for name in headers), "no web page may call unless it is configured"


@pytest.mark.anyio
async def test_web_pages_of_configured_origins_may_call_and_no_others(api_settings: Settings, registry: Registry) -> None:
    settings = api_settings.model_copy(update={"api": ApiSettings(cors_origins=("https://app.example",))})
    app: FastAPI = create_app(settings, registry)
    asking: dict[str, Any] = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,idempotency-key"}
    async with app.router.lifespan_context(app), client_of(app) as client:
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            asked = await client.options("/tasks", headers=asking | {"Origin": origin})
            got = await client.get("/tasks", headers={"Origin": origin})
            assert asked.headers.get("access-control-allow-origin") == allowed
            assert got.headers.get("access-control-allow-origin") == allowed


@pytest.mark.anyio
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(app: FastAPI) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/tasks",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-length", b"100")],
        "app": app,
    }
    coming: list[dict[str, Any]] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with capture_logs() as lines:
        await app(scope, receive, send)
    assert (coming, sent) == ([], [])
    assert "request.failed" not in [line["event"] for line in lines]
