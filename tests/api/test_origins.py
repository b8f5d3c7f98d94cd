"""Without keys: programs may do everything, and web pages of others nothing."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, Settings
from taskyard_api.app import create_app

from .conftest import placeless, submit

pytestmark = pytest.mark.anyio
HERE = "http://127.0.0.1:8000"


def page(app: FastAPI, base: str = HERE, **headers: str) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(app), base_url=f"{base}/api/v1", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("base", "headers"),
    [
        (HERE, {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}),
        (HERE, {"Origin": "null"}),
        (HERE, {"Sec_Fetch_Site": "cross-site"}),
        (HERE, {"Sec_Fetch_Site": "same-site"}),
        (HERE, {"Origin": "http://127.0.0.1:9000"}),
        (HERE, {"Origin": "http://["}),
    ],
)
async def test_a_page_of_another_origin_changes_nothing(app: FastAPI, base: str, headers: dict[str, str]) -> None:
    async with page(app) as ours, page(app, base, **headers) as theirs:
        task = await submit(ours)
        calls = [
            ("POST", "/tasks", b'{"type": "anything"}'),
            ("POST", f"/tasks/{task['id']}/cancel", b""),
            ("PATCH", f"/tasks/{task['id']}", b'{"priority": 1}'),
        ]
        for method, path, content in [*calls, ("POST", "/tasks/actions", b'{"action": "hold", "filter": {}}'), ("POST", "/queues/io/pause", b"")]:
            answer = await theirs.request(method, path, content=content)
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:taskyard:problem:forbidden"), path
            assert "cors_origins" in answer.json()["detail"]
        assert placeless((await ours.get(f"/tasks/{task['id']}")).json()) == task
        assert len((await ours.get("/tasks")).json()["items"]) == 1


@pytest.mark.parametrize("headers", [{}, {"Origin": HERE, "Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}])
async def test_its_own_pages_and_programs_may(app: FastAPI, headers: dict[str, str]) -> None:
    async with page(app, **headers) as client:
        await submit(client)


async def test_a_page_that_the_operator_names_may(api_settings: Settings, registry: Registry) -> None:
    made = create_app(api_settings.model_copy(update={"api": ApiSettings(cors_origins=("https://app.example",))}), registry)
    async with made.router.lifespan_context(made), page(made, Origin="https://app.example", Sec_Fetch_Site="cross-site") as client:
        await submit(client)
