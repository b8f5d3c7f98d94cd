"""The names by which the service answers: a web page's name that points here opens nothing."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import ValidationError
from structlog.testing import capture_logs

from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, AuthSettings, Settings
from taskyard_api.app import create_app
from tests.api import walk

pytestmark = pytest.mark.anyio
Make = Callable[..., AbstractAsyncContextManager[AsyncClient]]


@pytest.fixture
def calling(api_settings: Settings, registry: Registry) -> Make:
    """A client of a service with these settings."""

    @asynccontextmanager
    async def make(mode: str | None = None, **api: object) -> AsyncIterator[AsyncClient]:
        update = {"api": ApiSettings.model_validate(api), "auth": AuthSettings.model_validate({"mode": mode})}
        made = create_app(api_settings.model_copy(update=update), registry)
        async with made.router.lifespan_context(made), AsyncClient(transport=ASGITransport(made), base_url="http://127.0.0.1:8000/api/v1") as client:
            yield client

    return make


async def status(client: AsyncClient, *hosts: str, method: str = "GET", path: str = "/tasks") -> int:
    request = client.build_request(method, path)
    request.headers.pop("host")
    # By raw pairs: there may be none, or several.
    request.headers = type(request.headers)([*request.headers.raw, *((b"Host", host.encode()) for host in hosts)])
    return (await client.send(request)).status_code


LOCAL = ["localhost", "localhost:8000", "LocalHost.", "app.localhost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.1.2.3:80"]
FOREIGN = [
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "xlocalhost", "evil.example#localhost"),
    *(
        "localhost@evil.example",
        "",
        ":8000",
        "127.1",
        "0x7f.1",
        "2130706433",
        "[::1].evil.example",
        "[::1",
        "localhost:8000:1",
        "a" * 5000,
        "localhost\u00e9",
        "*",
    ),
]


@pytest.mark.parametrize("host", LOCAL)
async def test_loopback_names_and_addresses_are_always_answered(calling: Make, host: str) -> None:
    async with calling() as client:
        assert await status(client, host) == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_name_that_anybody_could_point_here_is_not_answered(calling: Make, host: str) -> None:
    async with calling() as client:
        assert await status(client, host) == 421


async def test_no_host_and_two_hosts_are_not_answered(calling: Make) -> None:
    async with calling() as client:
        assert await status(client) == 421
        assert await status(client, "localhost", "evil.example") == 421
        assert await status(client, "localhost", "localhost") == 421


async def test_every_method_and_path_but_health_asks_for_a_name(calling: Make, app: FastAPI) -> None:
    paths = sorted({walk.address(path, dict.fromkeys(walk.parameters(path), "1")) for _, path in walk.calls(app)})
    assert len(paths) > 20
    async with calling(cors_origins=["https://app.example"]) as client:
        for path in [*paths, "/", "/nothing", "/api/tasks/", "//api/v1/tasks", "/health"]:
            for method in ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "STRANGE"):
                found = await status(client, "evil.example", method=method, path=f"http://127.0.0.1{path}")
                is_open = path in ("/health/live", "/health/ready") and method in ("GET", "HEAD")
                assert found == (200 if is_open else 421), (method, path)
        preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET", "Host": "evil.example"}
        assert (await client.options("/tasks", headers=preflight)).status_code == 421


async def test_a_refusal_says_what_to_do_and_has_an_id(calling: Make) -> None:
    async with calling() as client:
        answer = await client.get("/tasks", headers={"Host": "tasks.example.com"})
        assert (answer.status_code, answer.headers["content-type"]) == (421, "application/problem+json")
        assert "api.hosts" in answer.json()["detail"]
        assert "'tasks.example.com'" in answer.json()["detail"]
        assert (answer.json()["type"], answer.json()["instance"]) == ("urn:taskyard:problem:forbidden", "/api/v1/tasks")
        assert answer.headers["x-request-id"]
        assert (await client.head("/tasks", headers={"Host": "tasks.example.com"})).content == b""
        document = (await client.get("http://127.0.0.1/openapi.json")).json()
    assert "421" in document["paths"]["/api/v1/tasks"]["get"]["responses"]
    assert "421" not in document["paths"]["/health/live"]["get"]["responses"]


async def test_a_refusal_is_logged_with_its_address(calling: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="taskyard_api.watch")
    async with calling() as client:
        with capture_logs() as lines:
            assert await status(client, "evil.example") == 421
    assert [(line["status"], line["address"]) for line in lines if line["event"] == "request.done"] == [(421, "127.0.0.1")]


async def test_the_operator_names_others(calling: Make) -> None:
    async with calling("none", hosts=["Tasks.example.com", "*.internal"], host="yard.lan") as client:
        for host in ("tasks.example.com", "TASKS.example.com.:443", "a.internal", "a.b.internal", "yard.lan", "localhost"):
            assert await status(client, host) == 200, host
        for host in ("example.com", "x.tasks.example.com", "internal", ".internal.evil", "ainternal"):
            assert await status(client, host) == 421, host
    async with calling(hosts=["*"]) as client:
        assert await status(client, "anything.example") == 200


async def test_where_keys_are_asked_for_any_name_will_do_unless_some_are_named(calling: Make) -> None:
    async with calling("keys") as client:
        assert await status(client, "tasks.example.com") == 401
    async with calling("keys", hosts=["tasks.example.com"]) as client:
        assert await status(client, "tasks.example.com") == 401
        assert await status(client, "evil.example") == 421


@pytest.mark.parametrize("wrong", ["http://a", "a:80", "a b", "", "-a", "a/*", "*a"])
def test_a_setting_that_is_no_name_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="without scheme and port"):
        ApiSettings(hosts=(wrong,))
