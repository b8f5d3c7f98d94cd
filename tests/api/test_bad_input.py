"""Whatever a client sends, the answer is a problem document that names the place, and the service goes on."""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from httpx2 import AsyncClient
from pydantic import SecretStr

from taskyard.plugins import Registry
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from taskyard_api.routes import actions, catalogue, deliveries, health, live, metrics, queues, submissions, tasks
from taskyard_api.routes.route import Route
from tests.databases import cloned

from .conftest import client_of, placeless, submit

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def client(postgres_url: str, template: str, registry: Registry) -> AsyncIterator[AsyncClient]:
    """One service for the whole module: bad input leaves nothing behind."""
    with cloned(postgres_url, template) as url:
        app = create_app(Settings(database=DatabaseSettings(url=SecretStr(url))), registry)
        async with app.router.lifespan_context(app), client_of(app) as made:
            yield made


JSON = {"Content-Type": "application/json"}


def task(**fields: Any) -> dict[str, Any]:
    return {"type": "anything", "payload": {}, **fields}


def slug(body: dict[str, Any]) -> str:
    return str(body["type"]).rpartition(":")[2]


async def refused(client: AsyncClient, content: bytes | str, status: int, named: str = "invalid-request") -> dict[str, Any]:
    answer = await client.post("/tasks", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert slug(body) == named
    assert body["status"] == status
    assert body["instance"] == "/api/v1/tasks"
    assert body["title"]
    assert body["detail"]
    await submit(client)
    return body


UNPARSEABLE = {
    "malformed": "{",
    "empty": "",
    "NaN": '{"type": "anything", "payload": NaN}',
    "infinity": '{"type": "anything", "payload": -Infinity}',
    "a 100,000-deep array": "[" * 100_000 + "]" * 100_000,
    "a number of a million digits": '{"type": "anything", "payload": ' + "1" * 900_000 + "}",
    "a lone surrogate": '{"type": "anything", "payload": "\\ud800"}',
    "a lone surrogate as a name": '{"type": "anything", "payload": {"\\udfff": 1}}',
    "not UTF-8": b'{"type": "anything", "payload": "\xff"}',
    "UTF-16": json.dumps(task()).encode("utf-16"),
    "a name twice": '{"type": "anything", "payload": 1, "type": "pages.fetch"}',
    "a name twice, deep within": '{"type": "anything", "payload": [{"a": {"b": 1, "b": 1}}]}',
    "trailing text": '{"type": "anything", "payload": 1} x',
}


@pytest.mark.parametrize("body", UNPARSEABLE.values(), ids=UNPARSEABLE)
async def test_a_body_that_is_not_json_is_a_400(client: AsyncClient, body: str | bytes) -> None:
    await refused(client, body, 400)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"\\ud800"'])
async def test_what_only_lenient_writers_take_for_json_is_named_with_its_place(client: AsyncClient, value: str) -> None:
    problem = await refused(client, f'{{"type": "anything", "payload": 1, "metadata": {{"a": [0, {value}]}}}}', 400)
    assert [place["pointer"] for place in problem["errors"]] == ["/metadata/a/1"]
    assert problem["errors"][0]["detail"] in problem["detail"]


MISTAKES = {
    "a list": ([], ""),
    "a string": ('"anything"', ""),
    "no type": ({"payload": 1}, "/type"),
    "a number as type": (task(type=7), "/type"),
    "no payload": ({"type": "anything"}, "/payload"),
    "an unknown name": (task(priorty=1), "/priorty"),
    "priority 10": (task(priority=10), "/priority"),
    "priority -1": (task(priority=-1), "/priority"),
    "priority true": (task(priority=True), "/priority"),
    "priority 5.0": (task(priority=5.0), "/priority"),
    "priority as text": (task(priority="5"), "/priority"),
    "a queue with a slash": (task(queue="a/b"), "/queue"),
    "a queue with a newline": (task(queue="a\n"), "/queue"),
    "a negative delay": (task(delay=-1), "/delay"),
    "an endless delay": (task(delay=1e300), "/delay"),
    "delay true": (task(delay=True), "/delay"),
    "delay beyond float": ('{"type": "anything", "payload": 1, "delay": 1e400}', "/delay"),
    "year 10000": (task(run_at="10000-01-01T00:00:00Z"), "/run_at"),
    "the last day of 9999": (task(run_at="9999-12-31T23:59:59-23:59"), "/run_at"),
    "year 1": (task(run_at="0001-01-01T00:00:00+23:59"), "/run_at"),
    "February 30": (task(run_at="2030-02-30T00:00:00Z"), "/run_at"),
    "no offset": (task(run_at="2030-01-01T00:00:00"), "/run_at"),
    "only a date": (task(expires_at="2030-01-01"), "/expires_at"),
    "seconds since 1970": (task(run_at=1893456000), "/run_at"),
    "run_at and delay": (task(run_at="2030-01-01T00:00:00Z", delay=1), ""),
    "timeout 0": (task(timeout=0), "/timeout"),
    "max_attempts 0": (task(max_attempts=0), "/max_attempts"),
    "max_attempts 1001": (task(max_attempts=1001), "/max_attempts"),
    "33 tags": (task(tags=[str(n) for n in range(33)]), "/tags"),
    "a long tag": (task(tags=["x" * 129]), "/tags/0"),
    "a tag twice": (task(tags=["a", "a"]), "/tags"),
    "a number as tag": (task(tags=["a", 1]), "/tags/1"),
    "tags as text": (task(tags="abc"), "/tags"),
    "metadata as list": (task(metadata=[]), "/metadata"),
    "large metadata": (task(metadata={"x": "y" * 17_000}), "/metadata"),
    "an empty unique_key": (task(unique_key=""), "/unique_key"),
    "a long unique_key": (task(unique_key="x" * 256), "/unique_key"),
    "NUL in the payload": (task(payload={"a": ["x", "\x00"]}), "/payload/a/1"),
    "NUL in a name": (task(payload={"a": {"\x00": 1}}), "/payload/a"),
    "NUL in the type": (task(type="a\x00"), "/type"),
    "NUL in a tag": (task(tags=["\x00"]), "/tags/0"),
    "NUL in the unique_key": (task(unique_key="\x00"), "/unique_key"),
    "a number beyond float": ('{"type": "anything", "payload": [1e400]}', "/payload/0"),
    "70 levels": ('{"type": "anything", "payload": ' + "[" * 70 + "]" * 70 + "}", "/payload" + "/0" * 63),
    "a wrong payload": (task(type="pages.fetch", payload={"url": "nonsense"}), "/payload/url"),
    "a payload with a name too many": (task(type="pages.fetch", payload={"url": "http://x/", "deph": 1}), "/payload/deph"),
    "a payload with a name too few": (task(type="pages.fetch"), "/payload/url"),
    "a wrong member of a union": (task(type="shapes.draw", payload={"kind": "circle", "radius": "r"}), "/payload/radius"),
}


@pytest.mark.parametrize(("body", "pointer"), MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_a_422_that_points_to_it(client: AsyncClient, body: Any, pointer: str) -> None:
    problem = await refused(client, body if isinstance(body, str) else json.dumps(body), 422)
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert all(error["detail"] for error in problem["errors"])


LOSING = ["12345678901234567890.123456789", "1e-400", "-0.0", "9007199254740993.0", "1e400"]


@pytest.mark.parametrize("number", LOSING)
@pytest.mark.parametrize(
    ("method", "path", "body", "pointer"),
    [
        ("POST", "/tasks", '{"type": "anything", "payload": {"amounts": [1, %s]}}', "/payload/amounts/1"),
        ("POST", "/tasks", '{"type": "anything", "payload": 1, "metadata": {"tiny": %s}}', "/metadata/tiny"),
        ("POST", "/tasks?validate_only=true", '{"type": "anything", "payload": %s}', "/payload"),
        ("POST", "/tasks/batch", '{"tasks": [{"type": "anything", "payload": 1}, {"type": "anything", "payload": {"a/b": %s}}]}', "/tasks/1/payload/a~1b"),
        ("PATCH", "/tasks/{id}", '{"metadata": {"tiny": %s}}', "/metadata/tiny"),
    ],
)
async def test_a_number_that_would_change_is_refused_with_its_place(client: AsyncClient, number: str, method: str, path: str, body: str, pointer: str) -> None:
    id_ = (await submit(client))["id"] if "{id}" in path else ""
    answer = await client.request(method, path.replace("{id}", id_), content=body % number, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_numbers_that_can_be_kept_come_back_as_they_were_sent(client: AsyncClient) -> None:
    sent = '{"whole":9007199254740993,"large":18446744073709551616,"third":0.30000000000000004,"far":1e+22,"least":5e-324}'
    made = await client.post("/tasks", content=f'{{"type":"anything","payload":{sent}}}', headers={"Content-Type": "application/json"})
    kept = await client.get(f"/tasks/{made.json()['id']}")
    for answer in (made, kept):
        payload = json.loads(answer.text, parse_float=Decimal)["payload"]
        assert payload == json.loads(sent, parse_float=Decimal)


async def test_all_mistakes_are_told_at_once(client: AsyncClient) -> None:
    problem = await refused(client, json.dumps(task(type="pages.fetch", payload={"url": 1}, priority=11, tags=["", 2])), 422)
    assert {error["pointer"] for error in problem["errors"]} == {"/payload/url", "/priority", "/tags/0", "/tags/1"}


async def test_a_mistyped_name_is_answered_with_the_right_one(client: AsyncClient) -> None:
    problem = await refused(client, json.dumps(task(type="pages.fetch", payload={"url": "http://x/", "deph": 1}, priorty=1)), 422)
    told = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert "'priority'" in told["/priorty"]
    assert "'depth'" in told["/payload/deph"]


async def test_an_unknown_type_is_answered_with_near_matches(client: AsyncClient) -> None:
    problem = await refused(client, json.dumps(task(type="pages.fetsh")), 422, "unknown-task-type")
    assert problem["near"] == ["pages.fetch"]
    assert "'pages.fetch'" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/type"


async def test_rejected_values_are_not_repeated(client: AsyncClient) -> None:
    answer = await client.post("/tasks", json=task(type="pages.fetch", payload={"url": "secret-value"}))
    assert "secret-value" not in answer.text


async def test_a_body_that_is_too_large_is_a_413(client: AsyncClient) -> None:
    await refused(client, json.dumps(task(payload="x" * 10_000_000)), 413, "too-large")


async def test_a_body_without_a_length_is_counted_as_it_comes(client: AsyncClient) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 65_536

    answer = await client.post("/tasks", content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert slug(answer.json()) == "too-large"


async def test_another_content_type_is_a_415(client: AsyncClient) -> None:
    answer = await client.post("/tasks", content=json.dumps(task()), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 415
    assert slug(answer.json()) == "invalid-request"


async def test_a_packed_body_is_a_415_and_is_not_unpacked(client: AsyncClient) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await client.post("/tasks", content=bomb, headers=JSON | {"Content-Encoding": "gzip"})
    assert (answer.status_code, slug(answer.json())) == (415, "invalid-request")


QUERIES = {
    "limit=0": "/limit",
    "limit=201": "/limit",
    "limit=x": "/limit",
    "statsu=failed": "/statsu",
    "status=done": "/status/0",
    "priority=10": "/priority",
    "created_after=yesterday": "/created_after",
    "created_before=10000-01-01T00:00:00Z": "/created_before",
    "cursor=garbled": "/cursor",
    "cursor=%00": "/cursor",
    "cursor=": "/cursor",
    "q=%00": "/q",
    "tag=a%00": "/tag/0",
}


@pytest.mark.parametrize(("query", "pointer"), QUERIES.items(), ids=QUERIES)
async def test_a_wrong_query_parameter_is_named(client: AsyncClient, query: str, pointer: str) -> None:
    answer = await client.get(f"/tasks?{query}")
    assert answer.status_code == 422, answer.text
    body = answer.json()
    assert slug(body) == "invalid-request"
    assert [error["pointer"] for error in body["errors"]] == [pointer]


@pytest.mark.parametrize("path", ["/tasks", "/deliveries", "/events", "/tasks/01890a5d-ac96-774b-bcce-b302099a8057/logs"])
async def test_of_thousands_of_unknown_query_parameters_the_first_few_are_named(client: AsyncClient, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    original = difflib.get_close_matches

    def counting(word: str, *rest: Any, **options: Any) -> list[str]:
        compared.append(word)
        return original(word, *rest, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counting)
    answer = await client.get(f"{path}?" + "&".join(f"statu{number}=x" for number in range(4000)))
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == len(compared) == 20
    assert "Did you mean 'status'" in answer.json()["errors"][0]["detail"] or path not in ("/tasks", "/deliveries", "/events")
    long = await client.get(f"{path}?{'x' * 60_000}=1")
    assert long.status_code == 422
    assert len(long.content) < 1000


async def test_a_mistyped_query_parameter_is_answered_with_the_right_one(client: AsyncClient) -> None:
    assert "'status'" in (await client.get("/tasks?statsu=failed")).json()["errors"][0]["detail"]


@pytest.mark.parametrize("id_", ["0", "nonsense", "%00", "01a207b1-3bb7-72d7-b038-6c026bc18488", "{01a207b1-3bb7-72d7-b038-6c026bc1848}"])
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("PATCH", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events")])
async def test_an_unknown_id_is_a_404(client: AsyncClient, id_: str, method: str, rest: str) -> None:
    answer = await client.request(method, f"/tasks/{id_}{rest}", json={"priority": 1} if method == "PATCH" else None)
    assert answer.status_code == 404
    assert slug(answer.json()) == "not-found"


async def test_an_unknown_address_is_a_404_problem(client: AsyncClient) -> None:
    answer = await client.get("/nothing/here")
    assert (answer.status_code, slug(answer.json())) == (404, "not-found")
    assert answer.json()["instance"] == "/api/v1/nothing/here"


async def test_a_wrong_method_is_told_which_ones_there_are(client: AsyncClient) -> None:
    answer = await client.delete("/tasks")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert slug(answer.json()) == "invalid-request"


PATCHES: dict[str, tuple[Any, str]] = {
    "nothing": ({}, ""),
    "an unknown name": ({"priorty": 1}, "/priorty"),
    "the payload": ({"payload": 1}, "/payload"),
    "an unknown status": ({"status": "running"}, "/status"),
    "null as priority": ({"priority": None}, "/priority"),
    "null as tags": ({"tags": None}, "/tags"),
    "year 10000": ({"run_at": "10000-01-01T00:00:00Z"}, "/run_at"),
    "NUL": ({"metadata": {"a": "\x00"}}, "/metadata/a"),
    "a list": ([], ""),
}


@pytest.mark.parametrize(("body", "pointer"), PATCHES.values(), ids=PATCHES)
async def test_a_wrong_change_is_a_422_and_changes_nothing(client: AsyncClient, body: Any, pointer: str) -> None:
    before = await submit(client)
    answer = await client.patch(f"/tasks/{before['id']}", json=body)
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert placeless((await client.get(f"/tasks/{before['id']}")).json()) == before


@pytest.mark.parametrize(
    "path", ["/tasks", "/task-types", "/queues", "http://test.localhost/health/live", "http://test.localhost/health/ready", "http://test.localhost/metrics"]
)
async def test_head_answers_as_get_does_without_the_content(client: AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.headers["content-type"], head.content) == (200, got.headers["content-type"], b"")
    assert int(head.headers["content-length"]) > 0


async def test_a_validator_that_breaks_is_told_at_the_payload_and_is_no_fault_of_the_service(client: AsyncClient) -> None:
    answer = await client.post("/tasks", json={"type": "breaks", "payload": {"next": None, "what": "x"}})
    assert (answer.status_code, answer.json()["errors"]) == (422, [{"pointer": "/payload", "detail": "its validator raised RuntimeError"}])


ID = "01890a5d-ac96-774b-bcce-b302099a8057"
#: One parameter of each call that has one, which takes one value.
REPEATED = [
    ("GET", "/tasks?limit=1&limit=1", "/limit"),
    ("GET", "/tasks?priority=1&status=pending&priority=2", "/priority"),
    ("GET", "/tasks?%70riority=1&priority=2", "/priority"),
    ("GET", "/deliveries?task_id=&task_id=", "/task_id"),
    ("GET", f"/tasks/{ID}/events?cursor=a&cursor=b", "/cursor"),
    ("GET", f"/tasks/{ID}/logs?limit=1&limit=2", "/limit"),
    ("GET", "/events?q=a&q=b", "/q"),
    ("POST", "/tasks?validate_only=true&validate_only=false", "/validate_only"),
    ("POST", "/tasks/batch?validate_only=true&validate_only=true", "/validate_only"),
]


@pytest.mark.parametrize(("method", "address", "pointer"), REPEATED, ids=lambda value: value if value.startswith("/") else None)
async def test_a_query_parameter_that_takes_one_value_is_refused_where_it_is_there_twice(client: AsyncClient, method: str, address: str, pointer: str) -> None:
    answer = await client.request(method, address, json=task() if method == "POST" else None)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text
    assert answer.json()["errors"][0]["detail"] == "expected one value, not 2"


async def test_every_call_refuses_what_it_takes_once_and_gets_twice() -> None:
    """The check is the route's own, so that a new call has it, too."""
    for part in (actions, catalogue, deliveries, health, live, metrics, queues, submissions, tasks):
        assert all(isinstance(route, Route) for route in part.router.routes), part.__name__
    [listed] = [route for route in tasks.router.routes if isinstance(route, Route) and route.name == "list_tasks"]
    assert {"limit", "cursor", "priority", "q", "namespace", "parent_id", "created_after"} <= set(listed.single_parameters())
    assert not {"status", "type", "queue", "tag"} & set(listed.single_parameters())


async def test_parameters_that_take_several_values_may_be_there_twice(client: AsyncClient) -> None:
    assert (await client.get("/tasks?status=pending&status=held&tag=a&tag=b&limit=1")).status_code == 200


@pytest.mark.parametrize("time", ["2030-01-01T00:00:00+0100", "2030-01-01T00:00:00 01:00", "2030-01-01T00:00:00.000001-0000"])
async def test_a_time_in_a_query_may_have_its_offset_as_clients_write_it(client: AsyncClient, time: str) -> None:
    assert (await client.get(f"/tasks?created_after={time}")).status_code == 200
