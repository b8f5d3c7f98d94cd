"""The OpenAPI document is valid, whole and true: what it shows can be sent, and what comes back is what it says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pluggy
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient, Response
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import SecretStr
from sqlalchemy import Engine, text

from taskyard import hookspecs, idempotency, known_types
from taskyard.events import EVENT_TYPES
from taskyard.notifiers import Event, TaskInfo
from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, AuthSettings, DatabaseSettings, Settings
from taskyard_api import access, edge, plain_schemas, problem_examples, problems, webhooks
from taskyard_api.app import create_app
from taskyard_webhook import signed_headers

from .conftest import client_of, force, submit
from .odd_types import with_odd_types
from .test_access import new_key, with_key

pytestmark = pytest.mark.anyio
Json = dict[str, Any]


def document_of(registry: Registry, mode: Any) -> Json:
    settings = Settings(database=DatabaseSettings(url=SecretStr("postgresql://x/y")), auth=AuthSettings(mode=mode))
    return json.loads(json.dumps(create_app(settings, registry).openapi()))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def document(registry: Registry) -> Json:
    return document_of(registry, "keys")


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            yield path, method, call


def no_plugins() -> Registry:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return Registry([], manager)


class Judge:
    """Validates values against schemas of a document, formats too."""

    def __init__(self, document: Json) -> None:
        self._document = document

    def check(self, schema: Json, value: Any) -> None:
        whole = {"allOf": [schema], "components": self._document["components"]}
        validator = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
        assert [error.message for error in validator.iter_errors(value)] == []

    def resolve(self, value: Json) -> Json:
        while "$ref" in value:
            found: Any = self._document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def answer(self, call: Json, answer: Response) -> None:
        """The answer is one that the call's part of the document has: its status, its headers, its media type and its content."""
        told = call["responses"].get(str(answer.status_code))
        assert told, f"{answer.status_code} is not documented: {answer.text}"
        for name, header in told.get("headers", {}).items():
            header = self.resolve(header)
            assert name in answer.headers or not header.get("required"), name
            if name in answer.headers:
                self.check(header["schema"], answer.headers[name])
        if answer.content:
            media = answer.headers["content-type"].partition(";")[0]
            self.check(told["content"][media]["schema"], answer.json())


@pytest.fixture(scope="module")
def judge(document: Json) -> Judge:
    return Judge(document)


@pytest.mark.parametrize("mode", ["keys", "none"])
@pytest.mark.parametrize("empty", [True, False], ids=["no plugins", "plugins"])
def test_the_document_is_openapi_3_1(registry: Registry, mode: str, empty: bool) -> None:
    made = document_of(no_plugins() if empty else registry, mode)
    assert made["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(made).iter_errors()] == []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (item for key, item in value.items() if key == "$ref")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(item)


def test_every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own(document: Json, judge: Judge) -> None:
    for reference in set(references(document)):
        assert judge.resolve({"$ref": reference})
    names = [call["operationId"] for _, _, call in operations(document)]
    assert len(set(names)) == len(names)
    for path, method, call in operations(document):
        assert call["summary"], (path, method)
        assert call["tags"], (path, method)
        assert set(call["tags"]) <= {tag["name"] for tag in document["tags"]}
        for response in call["responses"].values():
            for link in response.get("links", {}).values():
                assert link["operationId"] in names


def option(document: Json, union: str, type_: str) -> Json:
    """The schema of a type in one of the document's unions."""
    reference = document["components"]["schemas"][union]["discriminator"]["mapping"][type_]
    found: Json = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def test_each_types_payload_and_result_are_there(document: Json, judge: Judge, registry: Registry) -> None:
    schemas = document["components"]["schemas"]
    for handler in set(registry.handlers.values()):
        sent, shown = option(document, "TaskIn", handler.type), option(document, "Task", handler.type)
        assert sent["properties"]["payload"] == shown["properties"]["payload"]
        result = next(iter(shown["properties"]["result"].get("anyOf", [shown["properties"]["result"]])))
        for told, own in ((sent["properties"]["payload"], handler.payload_schema()), (result, handler.result_schema())):
            # A model that refers to itself has its own schema among its definitions.
            own = own["$defs"][own["$ref"].rpartition("/")[2]] if "$ref" in own else own
            assert judge.resolve(told).get("properties", {}).keys() == own.get("properties", {}).keys()
        assert set(shown["required"]) == set(shown["properties"]) == set(schemas["OtherTask"]["required"])


def every_schema(document: Json) -> Iterator[Json]:
    """All schemas of the document: components, and those of bodies, answers and parameters."""
    found: list[Json] = []
    roots = [*document["components"]["schemas"].values()]
    for _, _, call in operations(document):
        contents = [*call["responses"].values(), call.get("requestBody", {})]
        roots += [content["schema"] for part in contents for content in part.get("content", {}).values()]
        roots += [parameter["schema"] for parameter in call.get("parameters", ())]
    for root in roots:
        plain_schemas.each(root, found.append)
    return iter(found)


@pytest.fixture(scope="module")
def odd_document(registry: Registry) -> Json:
    return document_of(with_odd_types(registry), "none")


def test_schemas_are_named_by_identifiers_that_differ_in_more_than_case(odd_document: Json) -> None:
    names = list(odd_document["components"]["schemas"])
    assert [name for name in names if not re.fullmatch("[A-Z][A-Za-z0-9]*", name)] == []
    assert len({name.lower() for name in names}) == len(names)
    assert {name: schema["title"] for name, schema in odd_document["components"]["schemas"].items()} == {name: name for name in names}


def test_another_plugin_changes_no_name(registry: Registry, odd_document: Json) -> None:
    alone = document_of(registry, "none")["components"]["schemas"]
    changing = {"OtherTask", "Task", "TaskAnswer", "TaskIn"}
    assert {name: odd_document["components"]["schemas"][name] for name in alone.keys() - changing} == {name: alone[name] for name in alone.keys() - changing}


def test_names_that_collide_get_an_end_of_their_own(odd_document: Json) -> None:
    mapping = {union: odd_document["components"]["schemas"][union]["discriminator"]["mapping"] for union in ("TaskIn", "Task")}
    names = {union: [target.rpartition("/")[2] for target in targets.values()] for union, targets in mapping.items()}
    assert mapping["TaskIn"]["odd.words"].endswith("/SubmitOddWords")
    assert mapping["TaskIn"]["odd.old-words"].endswith("/SubmitOddWords")
    assert re.fullmatch("SubmitOddWords[0-9A-F]{6}", mapping["TaskIn"]["odd-words"].rpartition("/")[2])
    assert re.fullmatch("TaskIn[0-9A-F]{6}", mapping["Task"]["in"].rpartition("/")[2])
    assert all(len(set(found)) == len(found) - 1 for found in names.values()), "two names of one type lead to one schema"


def test_no_property_has_a_default_or_a_title_and_no_schema_is_told_by_what_it_is_not(odd_document: Json) -> None:
    """Generators take a default for a value that is required, a title for a class, and the properties of a `not` for all that there are."""
    components = {id(schema) for schema in odd_document["components"]["schemas"].values()}
    parameters = {id(parameter["schema"]) for _, _, call in operations(odd_document) for parameter in call.get("parameters", ())}
    for schema in every_schema(odd_document):
        assert "default" not in schema or id(schema) in parameters, schema
        assert not isinstance(schema.get("title"), str) or id(schema) in components, schema
        assert not schema.get("not"), schema
        for union in ("anyOf", "oneOf"):
            assert len(schema.get(union, "two")) > 1, schema
        for container, place in plain_schemas.parts(schema):
            assert isinstance(place, int) or not isinstance(container[place], dict) or container[place].get("type") != "null", schema
    everything = odd_document["components"]["schemas"]["PayloadOddEverything"]
    assert everything["properties"]["default"] == {"type": "string", "description": 'Default: `"a property of this name"`.'}
    assert everything["properties"]["nothing"] == {"const": None}


def test_no_answer_and_no_body_is_an_anonymous_union(odd_document: Json) -> None:
    for path, method, call in operations(odd_document):
        for part in [*call["responses"].values(), call.get("requestBody", {})]:
            for content in part.get("content", {}).values():
                assert not {"anyOf", "oneOf", "properties"} & content["schema"].keys(), (path, method)


@pytest.mark.parametrize("mode", ["keys", "none"])
def test_servers_and_keys_are_declared_in_every_mode(registry: Registry, mode: str) -> None:
    document = document_of(registry, mode)
    assert document["servers"] == [{"url": "/", "description": "This service."}]
    for path, _, call in operations(document):
        if not path.startswith("/health"):
            assert {"bearer": []} in call["security"]
            assert {"header": []} in call["security"]
            assert ({} in call["security"]) == (mode == "none")
            assert {"401", "403", "429"} <= set(call["responses"])


def test_the_server_is_under_the_prefix_that_a_proxy_strips(registry: Registry) -> None:
    settings = Settings(database=DatabaseSettings(url=SecretStr("postgresql://x/y")), api=ApiSettings(root_path="/jobs"))
    assert create_app(settings, registry).openapi()["servers"][0]["url"] == "/jobs"


def test_every_task_is_exactly_one_option_of_its_union(odd_document: Json) -> None:
    judge = Judge(odd_document)
    row = dict.fromkeys(odd_document["components"]["schemas"]["OtherTask"]["required"])
    now, id_ = datetime.now(UTC).isoformat(), str(uuid4())
    row |= {"id": id_, "namespace": "default", "status": "pending", "priority": 5, "queue": "q", "timeout": 1.0, "max_attempts": 1, "tags": [], "metadata": {}}
    row |= {"attempt": 0, "created_at": now, "updated_at": now, "cancel_requested": False, "version": 1}
    receipt = {name: row[name] for name in odd_document["components"]["schemas"]["TaskReceipt"]["required"] if name != "type"}
    for type_, payload in (("odd.words", {"several": []}), ("odd.old-words", {"several": []}), ("odd-words", []), ("in", ""), ("odd.any", 1), ("gone", 1)):
        for union in ("Task", "TaskAnswer"):
            judge.check({"$ref": f"#/components/schemas/{union}"}, row | {"type": type_, "payload": payload})
        judge.check({"$ref": "#/components/schemas/TaskAnswer"}, receipt | {"type": type_})
        with pytest.raises(AssertionError):
            judge.check({"$ref": "#/components/schemas/Task"}, receipt | {"type": type_})


async def test_every_example_of_a_body_can_be_sent_and_is_answered_as_the_document_says(client: AsyncClient, document: Json, judge: Judge) -> None:
    sent = 0
    for path, method, call in operations(document):
        for content in call.get("requestBody", {}).get("content", {}).values():
            schema = judge.resolve(content["schema"])
            examples = [example["value"] for example in content.get("examples", {}).values()] or schema.get("examples", [])
            assert examples, f"{method} {path} has a body and no example of one"
            for example in examples:
                judge.check(schema, example)
                address = path.replace("{task_id}", (await submit(client))["id"])
                answer = await client.request(method, f"http://test.localhost{address}", json=example)
                assert answer.status_code < 300, (path, example, answer.text)
                judge.answer(call, answer)
                sent += 1
    assert sent >= 5


async def test_every_example_of_a_parameter_can_be_sent(client: AsyncClient, document: Json, judge: Judge) -> None:
    sent = 0
    for path, method, call in operations(document):
        for parameter in call.get("parameters", ()):
            if "example" not in parameter or parameter["name"] == "Prefer":
                continue
            judge.check(parameter["schema"], parameter["example"])
            task = await submit(client)
            if path.endswith(("retry", "release")):
                await client.post(f"/tasks/{task['id']}/{'cancel' if path.endswith('retry') else 'hold'}")
            body: Json = {"patch": {"priority": 1}}.get(method, {"type": "anything", "payload": 1})
            body = {"tasks": [body]} if path.endswith("batch") else body
            values: Json = {"header": "headers", "query": "params"}
            options: Json = {values[parameter["in"]]: {parameter["name"]: parameter["example"]}} | ({"json": body} if "requestBody" in call else {})
            answer = await client.request(method, f"http://test.localhost{path.replace('{task_id}', task['id'])}", **options)
            assert answer.status_code < 300, (path, parameter["name"], answer.text)
            judge.answer(call, answer)
            sent += 1
    assert sent >= 6


def test_every_kind_of_problem_has_an_example_that_its_schema_takes(document: Json, judge: Judge) -> None:
    assert set(problem_examples.SAMPLES) == set(problems.KINDS), "a new error needs an example here"
    shown: set[str] = set()
    for path, method, call in operations(document):
        for status, response in call["responses"].items():
            for media, content in response.get("content", {}).items():
                if media != problems.MEDIA_TYPE:
                    continue
                assert content["examples"], (path, method, status)
                for name, example in content["examples"].items():
                    value = judge.resolve(example)["value"]
                    assert str(value["status"]) == status, (path, method, name)
                    judge.check(content["schema"], value)
                    judge.check({"$ref": "#/components/schemas/Problem"}, value)
                    shown.add(name)
    assert shown == set(document["components"]["examples"])


def test_every_call_tells_the_problems_that_it_may_have(document: Json) -> None:
    for path, method, call in operations(document):
        statuses = set(call["responses"])
        if not path.startswith("/api/"):
            continue
        assert {"401", "403", "422", "429", "500", "503"} <= statuses, (path, method)
        if "requestBody" in call:
            assert {"400", "408", "413", "415"} <= statuses, (path, method)
        if "{" in path:
            assert "404" in statuses, (path, method)
        if any(parameter["name"] == "If-Match" for parameter in call.get("parameters", ())):
            assert "412" in statuses, (path, method)


@pytest.fixture
async def keyed(api_settings: Settings, registry: Registry) -> AsyncIterator[FastAPI]:
    made = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with made.router.lifespan_context(made):
        yield made


async def test_the_examples_of_problems_are_what_the_service_says(
    app: FastAPI, client: AsyncClient, keyed: FastAPI, engine: Engine, registry: Registry, judge: Judge, document: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is provoked; type, title, status and members are as in the example."""
    task = await submit(client, unique_key="one")
    ended = await submit(client)
    force(engine, ended["id"], "succeeded")
    with engine.begin() as connection:
        known_types.note(connection, {"ledger.book": "broken"})
    one = {"type": "anything", "payload": 1}
    json_body = {"Content-Type": "application/json"}
    with_idempotency = {"Idempotency-Key": str(uuid4())}
    await client.post("/tasks", json=one, headers=with_idempotency)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    monkeypatch.setattr(edge, "BODY_SECONDS", 0.01)
    monkeypatch.setattr(edge, "DRAIN_SECONDS", 0.01)
    monkeypatch.setattr(access, "BURST", 0.0)
    away = Settings(database=DatabaseSettings(url=SecretStr("postgresql://127.0.0.1:1/nothing"), connect_timeout=0.2))
    gone = create_app(away, registry)
    reader = new_key(engine, "reader", scopes=("tasks:read",))
    found: dict[str, Response] = {
        "malformed-body": await client.post("/tasks", content="{", headers=json_body),
        "unsupported-media": await client.post("/tasks", content="{}", headers={"Content-Type": "text/plain"}),
        "unknown-task-type": await client.post("/tasks", json={"type": "pages.fetsh", "payload": 1}),
        "plugin-failed": await client.post("/tasks", json={"type": "ledger.book", "payload": 1}),
        "invalid-input": await client.post("/tasks", json=one | {"priority": 10}),
        "not-found": await client.get(f"/tasks/{uuid4()}"),
        "illegal-transition": await client.post(f"/tasks/{ended['id']}/hold"),
        "version-conflict": await client.post(f"/tasks/{task['id']}/hold", headers={"If-Match": '"9"'}),
        "unique-conflict": await client.post("/tasks", json=one | {"unique_key": "one"}),
        "idempotency-mismatch": await client.post("/tasks", json=one | {"payload": 2}, headers=with_idempotency),
        "too-large": await client.post("/tasks", content=b" " * 2_000_000, headers=json_body),
        "body-too-slow": await client.post("/tasks", content=never(), headers=json_body),
        "unknown-host": await client.post("/tasks", json=one, headers={"Host": "evil.example"}),
        "foreign-page": await client.post("/tasks", json=one, headers={"Origin": "https://evil.example"}),
    }
    async with client_of(keyed) as nobody:
        found["unauthorized"] = await nobody.post("/tasks", json=one)
        found["rate-limited"] = await nobody.post("/tasks", json=one, headers={"X-API-Key": f"ty_{'0' * 16}_{'x' * 43}"})
    monkeypatch.setattr(access, "BURST", 30.0)
    async with with_key(keyed, reader) as only_reads:
        found["forbidden"] = await only_reads.post("/tasks", json=one)
    async with gone.router.lifespan_context(gone), client_of(gone) as without_database:
        found["unavailable"] = await without_database.post("/tasks", json=one)
    monkeypatch.setattr(idempotency, "fingerprint", lambda sent: 1 // 0)
    found["internal"] = await client.post("/tasks", json=one, headers={"Idempotency-Key": "x"})
    examples = document["components"]["examples"]
    # That one takes a quota: see test_quotas.py.
    assert set(found) == set(examples) - {"payload-too-large"}
    call = document["paths"]["/api/v1/tasks"]["post"]
    for name, answer in found.items():
        example, said = examples[name]["value"], answer.json()
        assert {key: said[key] for key in ("type", "title", "status")} == {key: example[key] for key in ("type", "title", "status")}, name
        assert set(said) == set(example), name
        assert answer.headers["content-type"] == problems.MEDIA_TYPE
        if name not in ("illegal-transition", "version-conflict"):
            judge.answer(call, answer)


async def test_the_answers_are_what_the_document_says(client: AsyncClient, document: Json, judge: Judge, engine: Engine) -> None:
    """Every call, once, on a task that has something to tell."""
    task = await submit(client, "pages.fetch", {"url": "http://x/"}, tags=["a"], metadata={"b": 1}, run_at="2030-01-01T00:00:00Z")
    done = await submit(client, "pages.fetch", {"url": "http://x/"})
    force(engine, done["id"], "succeeded")
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET result = '{\"size\": 1}' WHERE id = :id"), {"id": done["id"]})
    asked = 0
    for path, method, call in operations(document):
        if method != "get" or path.endswith("/stream") or path in ("/api/v1/events", "/metrics"):
            continue
        for id_ in (task["id"], done["id"]):
            address = path.replace("{task_id}", id_).replace("{type}", "pages.fetch").replace("{delivery_id}", "1")
            judge.answer(call, await client.get(f"http://test.localhost{address}"))
            asked += 1
    assert asked > 20
    typed = (await client.get(f"/tasks/{done['id']}")).json()
    judge.check({"$ref": "#/components/schemas/TaskPagesFetch"}, typed)
    with pytest.raises(AssertionError):
        judge.check({"$ref": "#/components/schemas/Task"}, typed | {"result": {"size": "large"}})
    judge.check({"$ref": "#/components/schemas/Task"}, typed | {"type": "of.a.plugin.that.is.gone"})


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_a_webhook_is_what_the_document_says(document: Json, judge: Judge, type_: str) -> None:
    told = document["webhooks"][type_]["post"]
    event = Event("evt_7", type_, datetime.now(UTC), uuid4(), 1, {"fraction": 0.5}, TaskInfo("ours", "pages.fetch", "io", 5, ("a",), "running"))
    sent = event.to_cloudevent()
    headers = signed_headers(["whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "dlv_1", datetime.now(UTC), json.dumps(sent))
    media = headers.pop("content-type").partition(";")[0]
    judge.check(told["requestBody"]["content"][media]["schema"], sent)
    for parameter in told["parameters"]:
        judge.check(parameter["schema"], headers.pop(parameter["name"]))
        judge.check(parameter["schema"], parameter["example"])
    assert headers == {}, "the document knows all that is sent"
    for example in told["requestBody"]["content"][media]["examples"].values():
        judge.check(told["requestBody"]["content"][media]["schema"], example["value"])
    with pytest.raises(AssertionError):
        judge.check(told["requestBody"]["content"][media]["schema"], sent | {"type": "task.other"})


def test_every_event_has_a_webhook(document: Json) -> None:
    assert set(document["webhooks"]) == set(EVENT_TYPES)
    assert document["webhooks"].keys() == webhooks.webhooks().keys()


def test_only_what_is_open_needs_no_key(document: Json) -> None:
    open_calls = {path for path, _, call in operations(document) if "security" not in call}
    assert open_calls == {"/health/live", "/health/ready"}
    for path, _, call in operations(document):
        if path not in open_calls:
            assert call["security"] == [{"bearer": []}, {"header": []}]
