"""What is installed, as the service tells it."""

from __future__ import annotations

import jsonschema
import pytest
from httpx2 import AsyncClient
from sqlalchemy import Engine

from taskyard import handler
from taskyard.plugins import Plugin, Registry
from taskyard.routes import disable, sync_routes
from taskyard.settings import Settings
from taskyard_api.app import create_app
from tests.api.conftest import client_of, hooks

pytestmark = pytest.mark.anyio


async def test_task_types_tell_schemas_defaults_and_plugin(client: AsyncClient) -> None:
    items = (await client.get("/task-types")).json()["items"]
    assert [item["type"] for item in items] == ["anything", "breaks", "pages.fetch", "shapes.draw"]
    fetch = (await client.get("/task-types/pages.fetch")).json()
    assert fetch == items[2]
    assert fetch["description"] == "Fetch a page and say how large it is."
    assert (fetch["plugin"], fetch["lane"], fetch["batch"]) == ("sample", "async", None)
    assert fetch["defaults"] == {"queue": "io", "priority": 6, "timeout": 30.0, "max_attempts": 5}
    jsonschema.validate({"url": "http://x"}, fetch["payload_schema"])
    jsonschema.validate({"size": 1}, fetch["result_schema"])


async def test_a_batch_handler_tells_how_many_tasks_a_call_takes(api_settings: Settings) -> None:
    @handler("crowd.greet", batch=50)
    def greet(payloads: list[str]) -> list[str]:
        """Greet them all."""
        return payloads

    app = create_app(api_settings, Registry([Plugin("crowd", "taskyard-crowd", "1.0", handlers=[greet.owned_by("crowd")])], hooks()))
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/task-types/crowd.greet")).json()["batch"] == 50


async def test_an_unknown_task_type_is_a_404_with_the_nearest(client: AsyncClient) -> None:
    answer = await client.get("/task-types/pages.fetsh")
    assert answer.status_code == 404
    assert "'pages.fetch'" in answer.json()["detail"]


async def test_plugins_tell_their_state_and_why_they_failed(client: AsyncClient) -> None:
    broken, sample = (await client.get("/plugins")).json()["items"]
    assert (broken["state"], broken["reason"]) == ("failed", "ImportError: no module named 'nowhere'")
    assert (sample["state"], sample["version"], sample["notifiers"]) == ("enabled", "1.0", ["pigeon"])
    assert sample["task_types"] == ["anything", "breaks", "pages.fetch", "shapes.draw"]


async def test_notifiers_tell_their_options_and_routes(client: AsyncClient) -> None:
    [pigeon] = (await client.get("/notifiers")).json()["items"]
    assert (pigeon["name"], pigeon["plugin"], pigeon["description"], pigeon["routes"]) == ("pigeon", "sample", "Send a pigeon.", ["all ends"])
    assert "loft" in pigeon["options_schema"]["properties"]
    assert pigeon["route_states"] == [{"name": "all ends", "state": "unknown", "reason": None, "since": None}]


async def test_a_route_that_was_switched_off_is_shown_with_the_reason(client: AsyncClient, engine: Engine, api_settings: Settings) -> None:
    with engine.begin() as connection:
        sync_routes(connection, api_settings.routes)
    [pigeon] = (await client.get("/notifiers")).json()["items"]
    assert pigeon["route_states"][0]["state"] == "enabled"
    with engine.begin() as connection:
        disable(connection, "all ends", "HTTP 410 Gone")
    [pigeon] = (await client.get("/notifiers")).json()["items"]
    state = pigeon["route_states"][0]
    assert (state["state"], state["reason"]) == ("disabled", "HTTP 410 Gone")
    assert state["since"] is not None


async def test_openapi_shows_each_payload_in_a_union_by_type(client: AsyncClient) -> None:
    document = (await client.get("http://test.localhost/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    body = document["paths"]["/api/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/TaskIn"}
    mapping = schemas["TaskIn"]["discriminator"]["mapping"]
    assert list(mapping) == ["anything", "breaks", "pages.fetch", "shapes.draw"]
    validator = jsonschema.Draft202012Validator({**document, "$ref": mapping["pages.fetch"]})
    validator.validate({"type": "pages.fetch", "payload": {"url": "http://x"}, "priority": None})
    assert not validator.is_valid({"type": "pages.fetch", "payload": {"depth": 1}})
    assert not validator.is_valid({"type": "other", "payload": {"url": "http://x"}})


async def test_examples_in_openapi_are_true(client: AsyncClient, registry: Registry) -> None:
    schemas = (await client.get("http://test.localhost/openapi.json")).json()["components"]["schemas"]
    assert "examples" not in schemas["SubmitBreaks"], "nothing that its validator takes"
    for type_ in registry.handlers.keys() - {"breaks"}:
        [example] = schemas[schemas["TaskIn"]["discriminator"]["mapping"][type_].rpartition("/")[2]]["examples"]
        assert (await client.post("/tasks", json=example)).status_code == 201


async def test_openapi_documents_only_canonical_paths_and_every_problem(client: AsyncClient) -> None:
    document = (await client.get("http://test.localhost/openapi.json")).json()
    paths = document["paths"]
    assert all(path.startswith(("/api/v1/", "/health/", "/metrics")) and not path.endswith("/") for path in paths)
    for path, calls in paths.items():
        for call in calls.values():
            problems = {status: answer for status, answer in call["responses"].items() if status >= "400"}
            if path.startswith("/api"):
                assert {"422", "500", "503"} <= set(problems)
                assert all(list(answer["content"]) == ["application/problem+json"] for answer in problems.values())


async def test_a_service_without_plugins_still_documents_itself(client: AsyncClient) -> None:
    assert (await client.get("http://test.localhost/docs")).status_code == 200
