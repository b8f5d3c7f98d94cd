"""Keys: who may call what, in which namespace, and how everybody else is turned away."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest
import structlog
from fastapi import APIRouter, FastAPI
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import Connection, Engine, text
from structlog.testing import capture_logs

from taskyard import audit, keys, queries
from taskyard.audit import Actor
from taskyard.errors import InvalidInput, Unavailable
from taskyard.plugins import Plugin, Registry
from taskyard.routes import sync_routes
from taskyard.settings import ApiSettings, AuthSettings, Settings
from taskyard_api import access, bulk
from taskyard_api.app import create_app
from taskyard_api.edge import canonical
from taskyard_api.models import TaskReceipt
from taskyard_api.routes import deliveries
from tests.api import walk
from tests.api.conftest import client_of, force, hooks, submit
from tests.api.test_live import reading, served

pytestmark = pytest.mark.anyio
EVERYTHING = ("tasks:read", "tasks:write", "admin")


@pytest.fixture
async def app(api_settings: Settings, registry: Registry) -> AsyncIterator[FastAPI]:
    made = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with made.router.lifespan_context(made):
        yield made


def new_key(engine: Engine, name: str = "someone", **options: Any) -> str:
    with engine.begin() as connection:
        return keys.create(connection, name, **options).secret


def with_key(app: FastAPI, key: str) -> AsyncClient:
    client = client_of(app)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


OPEN = {"/health/live", "/health/ready"}
#: Addresses that /openapi.json does not tell of.
UNTOLD = {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
NOBODYS = "01890a5d-ac96-774b-bcce-b302099a8057"
SAMPLES = {"task_id": NOBODYS, "delivery_id": "1", "name": "io", "type": "anything"}


def sample(path: str) -> str:
    """A path with something in the place of each parameter, a new one too."""
    return walk.address(path, dict.fromkeys(walk.parameters(path), "1") | SAMPLES)


async def test_every_call_but_health_asks_for_a_key_and_has_a_rule(app: FastAPI) -> None:
    asked = list(walk.calls(app))
    assert len(asked) > 40
    async with client_of(app) as client:
        for method, template in asked:
            path = sample(template)
            for key in ({}, {"Authorization": "Basic dTpw"}, {"Authorization": "Bearer"}):
                for address in {path, path.replace("/api/v1/", "/api/"), path + "/"}:
                    answer = await client.request(method, f"http://test.localhost{address}", headers=key, content=b"{}")
                    if template in OPEN:
                        assert answer.status_code == 200, (path, answer.text)
                    else:
                        assert answer.status_code == 401, (method, address)
                        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="taskyard"'
                        assert method == "HEAD" or answer.json()["type"] == "urn:taskyard:problem:unauthorized"
            rule = access.rule_for("GET" if method == "HEAD" else method, canonical(path))
            assert rule is not None, f"{method} {template} has no rule in access.py"
            assert (rule == access.OPEN) == (template in OPEN), f"{method} {template}: who may call it?"
        for strange in ("/", "/nothing", "/health", "/health/", "/health/live/../../api/v1/tasks", "//api/v1/tasks", "/API/v1/tasks"):
            assert (await client.get(f"http://test.localhost{strange}")).status_code == 401, strange


async def test_every_call_is_in_the_document_or_named_here(app: FastAPI) -> None:
    told = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    walked = {(method, path) for method, path in walk.calls(app) if method != "HEAD"}
    assert walked - told == {("GET", path) for path in UNTOLD}
    assert told <= walked


async def test_what_is_added_without_a_rule_is_walked_and_closed(app: FastAPI, engine: Engine) -> None:
    async def new() -> str:
        return "new"

    router = APIRouter()
    router.add_api_route("/new/{what}", new, methods=["GET", "DELETE"])
    router.add_api_websocket_route("/socket", new)
    app.include_router(router, prefix="/api/v1")
    app.mount("/mounted", FastAPI())
    added = {("GET", "/api/v1/new/{what}"), ("HEAD", "/api/v1/new/{what}"), ("DELETE", "/api/v1/new/{what}")}
    added |= {("GET", "/api/v1/socket"), ("GET", "/mounted"), ("GET", "/mounted/anything")}
    assert added <= set(walk.calls(app))
    async with client_of(app) as nobody, with_key(app, new_key(engine, scopes=("tasks:read", "tasks:write"))) as somebody:
        for method, path in added:
            assert access.rule_for(method, path) is None
            assert (await nobody.request(method, f"http://test.localhost{sample(path)}")).status_code == 401, path
        assert (await somebody.get("http://test.localhost/api/v1/new/1")).status_code == 403
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/api/v1/socket", "headers": []}, send, send)  # type: ignore[arg-type]  # nothing is received
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_key_is_taken_in_either_header_and_a_wrong_one_in_none(app: FastAPI, engine: Engine) -> None:
    key = new_key(engine)
    id_, secret = key.removeprefix("ty_").split("_", 1)
    async with client_of(app) as client:
        for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key} "}, {"X-API-Key": key}):
            assert (await client.get("/tasks", headers=headers)).status_code == 200
        wrong = (
            f"ty_{id_}_{secret[:-1]}",
            f"ty_{id_}_{secret[::-1]}",
            f"ty_{'0' * 16}_{secret}",
            "ty_",
            "ty__",
            key + "x",
            "\u00e9",
            "x" * 10_000,
            f"{key}\x00",
        )
        for shown in wrong:
            answer = await client.get("/tasks", headers=[(b"X-API-Key", shown.encode())])
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].endswith('error="invalid_token"')
            assert secret[:20] not in answer.text


async def test_a_scope_opens_its_calls_and_no_others(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine, "reader", scopes=("tasks:read",))) as reader:
        assert (await reader.get("/tasks")).status_code == 200
        refused = await reader.post("/tasks", json={"type": "anything"})
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:taskyard:problem:forbidden")
        assert "tasks:write" in refused.json()["detail"]
        assert 'scope="tasks:write"' in refused.headers["WWW-Authenticate"]
        assert (await reader.get("/queues")).status_code == 403
        assert (await reader.get("http://test.localhost/metrics")).status_code == 403
        assert (await reader.get("/nothing")).status_code == 404
    async with with_key(app, new_key(engine, "writer", scopes=("tasks:write",))) as writer:
        await submit(writer)
        assert (await writer.get("/tasks")).status_code == 403
    async with with_key(app, new_key(engine, "operator", scopes=("admin",))) as operator:
        assert len((await operator.get("/tasks")).json()["items"]) == 1
        for path in ("/queues", "http://test.localhost/metrics", "http://test.localhost/openapi.json", "http://test.localhost/docs"):
            assert (await operator.get(path)).status_code == 200, path


async def test_a_key_for_metrics_opens_the_metrics_and_nothing_else(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine, "prometheus", scopes=("metrics:read",))) as prometheus:
        assert (await prometheus.get("http://test.localhost/metrics")).status_code == 200
        for path in ("/tasks", "/queues", "/deliveries", "/events", "/task-types"):
            assert (await prometheus.get(path)).status_code == 403, path
        assert (await prometheus.post("/tasks", json={"type": "anything"})).status_code == 403
    async with with_key(app, new_key(engine, "reader", scopes=("tasks:read", "tasks:write"))) as reader:
        refused = await reader.get("http://test.localhost/metrics")
        assert (refused.status_code, "metrics:read" in refused.json()["detail"]) == (403, True)


@pytest.mark.parametrize("mode", ["keys", "none"])
@pytest.mark.parametrize("prefix", ["/jobs", "/api", "/api/v1", "/health"])
async def test_a_prefix_that_the_proxy_has_not_stripped_is_no_address_here(
    api_settings: Settings, registry: Registry, engine: Engine, mode: Literal["keys", "none"], prefix: str
) -> None:
    served_at = api_settings.model_copy(update={"auth": AuthSettings(mode=mode), "api": ApiSettings(root_path=prefix)})
    made = create_app(served_at, registry)
    async with made.router.lifespan_context(made), with_key(made, new_key(engine, scopes=("tasks:read", "tasks:write"))) as client:
        for path in ("/api/v1/tasks", "/api/tasks/", "/health/live", "/docs"):
            assert (await client.get(f"http://test.localhost{path}")).status_code == 200, f"the proxy has stripped {prefix}"
            unstripped = await client.get(f"http://test.localhost{prefix}{path}")
            assert (unstripped.status_code, unstripped.json()["type"]) == (404, "urn:taskyard:problem:not-found"), path
            assert f"strip {prefix} " in unstripped.json()["detail"]
        made_task = await client.post("/tasks", json={"type": "anything", "payload": 1})
        assert made_task.headers["Location"] == f"{prefix}/api/v1/tasks/{made_task.json()['id']}"


@pytest.mark.parametrize(("scope", "near"), [("metrics:raed", "metrics:read"), ("task:read", "tasks:read"), ("Admin", "admin")])
def test_a_mistyped_scope_is_told_the_near_one(engine: Engine, scope: str, near: str) -> None:
    with pytest.raises(InvalidInput, match=near) as refused:
        new_key(engine, scopes=("tasks:read", scope))
    assert all(known in str(refused.value) for known in keys.SCOPES)
    assert f"Did you mean {near!r}" in str(refused.value)


#: Parameters of paths that name something of the whole installation, the same for every namespace.
INSTALLED = {"name": "io", "type": "anything"}
#: Calls without an id that tell the same to every namespace, and nothing of any. Queues and metrics are an operator's: their counts are of all.
SAME_FOR_ALL = {
    "/api/v1/queues",
    "/api/v1/task-types",
    "/api/v1/plugins",
    "/api/v1/notifiers",
    "/health/live",
    "/health/ready",
    "/metrics",
    *UNTOLD,
}
#: Lists, with ways to ask for what another namespace has, of the task and the tag that are put in.
LISTS = {
    "/api/v1/tasks": (
        "",
        "?tag=secret",
        "?q={task_id}",
        "?q={prefix}&type=anything",
        "?status=pending",
        "?created_after=2020-01-01T00:00:00Z",
        "?id={task_id}",
        "?unique_key=one",
        "?metadata.note=hidden",
        "?fields=id,payload",
    ),
    "/api/v1/deliveries": ("", "?task_id={task_id}", "?route=all%20ends", "?status=pending"),
}
#: What is neither: a test below says of each what it does with another namespace's things.
TRIED_BELOW = {
    ("POST", "/api/v1/tasks"),
    ("POST", "/api/v1/tasks/batch"),
    ("POST", "/api/v1/tasks/validate"),
    ("POST", "/api/v1/tasks/batch/validate"),
    ("POST", "/api/v1/tasks/actions"),
    ("POST", "/api/v1/deliveries/actions"),
    ("GET", "/api/v1/events"),
}
#: Bodies that are right, for calls that read one.
BODIES: dict[tuple[str, str], Any] = {("PATCH", "/api/v1/tasks/{task_id}"): {"priority": 1}}


@dataclass
class Two:
    """Two namespaces: ours with a task and a delivery, theirs with nothing but a key that may do all."""

    ours: AsyncClient
    theirs: AsyncClient
    task: dict[str, Any]
    delivery: dict[str, Any]


@pytest.fixture
async def two(app: FastAPI, engine: Engine, api_settings: Settings) -> AsyncIterator[Two]:
    with engine.begin() as connection:
        sync_routes(connection, api_settings.routes)
    async with (
        with_key(app, new_key(engine, "a", namespace="ours", scopes=EVERYTHING)) as ours,
        with_key(app, new_key(engine, "b", namespace="theirs", scopes=EVERYTHING)) as theirs,
    ):
        made = await submit(ours, tags=["secret"], unique_key="one", metadata={"note": "hidden"})
        task = (await ours.get(f"/tasks/{made['id']}")).json()
        yield Two(ours, theirs, task, (await ours.get("/deliveries")).json()["items"][0])


async def test_another_namespaces_things_are_nowhere_on_any_call(app: FastAPI, two: Two) -> None:
    foreign = {"task_id": two.task["id"], "delivery_id": two.delivery["id"]}
    hidden = 0
    for method, path in walk.calls(app):
        names = set(walk.parameters(path))
        if method == "HEAD" or names & set(INSTALLED):
            assert names <= set(foreign) | set(INSTALLED), f"{path}: can one of {names} be another namespace's? Say so here."
        elif names:
            assert names <= set(foreign), f"{path}: whose are {names}? Say so here, and make one that is another namespace's."
            answer = await two.theirs.request(method, f"http://test.localhost{walk.address(path, foreign)}", json=BODIES.get((method, path)))
            assert answer.status_code == 404, (method, path, answer.text)
            assert two.task["type"] not in answer.text
            hidden += 1
        elif path in LISTS and method == "GET":
            for query in LISTS[path]:
                asked = query.format(task_id=two.task["id"], prefix=two.task["id"][:8])
                answer = await two.theirs.get(f"http://test.localhost{path}{asked}")
                assert (answer.status_code, answer.json()["items"]) == (200, []), (path, query)
        else:
            assert path in SAME_FOR_ALL or (method, path) in TRIED_BELOW, f"{method} {path}: what does it tell of another namespace? Say so here."
    assert hidden >= 10
    assert (await two.ours.get(f"/tasks/{two.task['id']}")).json() == two.task, "and nothing has changed"
    assert (await two.ours.get("/deliveries")).json()["items"] == [two.delivery]


async def listed(client: AsyncClient, path: str) -> list[tuple[str, str]]:
    """The namespaces and ids in a list, over all its pages."""
    found, cursor = [], ""
    while True:
        page = (await client.get(f"{path}{'&' if '?' in path else '?'}limit=1{cursor}")).json()
        found += [(item["namespace"], item["id"]) for item in page["items"]]
        if not page["next_cursor"]:
            return found
        cursor = f"&cursor={page['next_cursor']}"


async def test_a_key_for_all_namespaces_lists_and_gets_what_every_namespace_has(app: FastAPI, two: Two, engine: Engine) -> None:
    theirs = await submit(two.theirs, "pages.fetch", {"url": "https://example.com/"}, tags=["secret"])
    pairs = [("theirs", theirs["id"]), ("ours", two.task["id"])]
    async with with_key(app, new_key(engine, "o", namespace="ops", scopes=("all-namespaces",))) as operator:
        for query in ("", "?namespace=*", "?tag=secret", "?status=pending", "?status=pending&type=pages.fetch&type=anything", "?q=01"):
            assert await listed(operator, f"/tasks{query}") == pairs, query
        assert await listed(operator, "/tasks?namespace=ours") == pairs[1:]
        assert await listed(operator, "/tasks?namespace=theirs&status=pending") == pairs[:1]
        assert await listed(operator, "/tasks?namespace=nobodys") == []
        for of in ("", "?namespace=ours", "?route=all%20ends", "?status=pending"):
            assert ("ours", two.delivery["id"]) in await listed(operator, f"/deliveries{of}"), of
        assert {name for name, _ in await listed(operator, "/deliveries")} == {"ours", "theirs"}
        assert (await operator.get(f"/tasks/{two.task['id']}")).json() == two.task
        assert (await operator.get(f"/deliveries/{two.delivery['id']}")).json() == two.delivery
        ids = {"task_id": two.task["id"], "delivery_id": two.delivery["id"]}
        for method, path in walk.calls(app):
            if method == "GET" and set(walk.parameters(path)) & set(ids) and not path.endswith("/stream"):
                assert (await operator.get(f"http://test{walk.address(path, ids)}")).status_code == 200, path
        assert (await operator.get("/queues")).status_code == 200
        waited = await operator.get(f"/tasks/{two.task['id']}", headers={"Prefer": "wait=0"})
        assert (waited.status_code, waited.json()["id"]) == (200, two.task["id"])
        assert (await operator.get("http://test.localhost/metrics")).status_code == 403
        assert (await operator.get(f"/tasks/{NOBODYS}")).status_code == 404


async def test_a_key_for_all_namespaces_writes_elsewhere_only_by_id_and_only_with_admin(app: FastAPI, two: Two, engine: Engine) -> None:
    at = f"/tasks/{two.task['id']}"
    both = ("all-namespaces", "tasks:write")
    async with with_key(app, new_key(engine, "w", namespace="ops", scopes=both)) as writer:
        own = await submit(writer)
        assert own["namespace"] == "ops", "a submission is in the key's own namespace"
        assert (await writer.post(f"/tasks/{own['id']}/hold")).status_code == 200
        for refused in (await writer.post(f"{at}/hold"), await writer.patch(at, json={"priority": 1})):
            assert (refused.status_code, "needs the scope admin" in refused.json()["detail"]) == (403, True)
        assert (await writer.post(f"/tasks/{NOBODYS}/hold")).status_code == 404
    async with with_key(app, new_key(engine, "a", namespace="ops", scopes=(*both, "admin"))) as admin:
        held = await admin.post(f"{at}/hold")
        assert (held.status_code, held.json()["namespace"], held.json()["status"]) == (200, "ours", "held")
        with engine.begin() as connection:
            connection.execute(text("UPDATE deliveries SET status = 'dead', next_try_at = NULL"))
        again = await admin.post(f"/deliveries/{two.delivery['id']}/redeliver")
        assert (again.status_code, again.json()["status"]) == (200, "pending")
        for of, action in (("tasks", "release"), ("deliveries", "redeliver")):
            for chosen in ({}, {"namespace": "ours"}):
                answer = await admin.post(f"/{of}/actions", json={"action": action, "filter": chosen, "dry_run": True})
                found = 1 if of == "tasks" else len(await listed(admin, "/deliveries?namespace=ops"))
                assert answer.status_code == 422 if chosen else answer.json()["matched"] == found, "an action stays in the key's own namespace"
    with engine.connect() as connection:
        names = {(entry.verb, entry.key_name, entry.namespace) for entry in audit.entries(connection, 10)}
    assert ("task.hold", "a", "ops") in names


async def test_admin_alone_redelivers_and_reads_in_its_own_namespace(two: Two) -> None:
    delivery, task = f"/deliveries/{two.delivery['id']}", f"/tasks/{two.task['id']}"
    for method, path in (("POST", f"{delivery}/redeliver"), ("GET", delivery), ("GET", task)):
        assert (await two.theirs.request(method, path)).status_code == 404


async def test_the_command_line_lists_one_namespace_or_all_and_says_where_each_task_is(
    two: Two, api_settings: Settings, registry: Registry, engine: Engine
) -> None:
    theirs = await submit(two.theirs)
    everywhere, here = (new_key(engine, scope.partition(":")[0], namespace="theirs", scopes=(scope,)) for scope in ("all-namespaces", "tasks:read"))
    another = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with served(another) as url:

        async def taskyard(key: str, *arguments: str) -> tuple[int, str, str]:
            environment = {"PATH": os.environ["PATH"], "TASKYARD_URL": url.removesuffix("/api/v1"), "TASKYARD_KEY": key}
            command = [sys.executable, "-m", "taskyard", *arguments]
            run = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60)
            return run.returncode, run.stdout, run.stderr

        _, shown, _ = await taskyard(everywhere, "tasks", "list", "--all-namespaces")
        header, *rows = [line.split() for line in shown.splitlines()]
        assert header[:2] == ["NAMESPACE", "ID"]
        assert [row[:2] for row in rows] == [["theirs", theirs["id"]], ["ours", two.task["id"]]]
        assert [row.split()[0] for row in (await taskyard(everywhere, "tasks", "list", "--namespace", "ours"))[1].splitlines()[1:]] == [two.task["id"]]
        assert two.delivery["id"] in (await taskyard(everywhere, "deliveries", "list", "--namespace", "ours"))[1].split()
        assert [row.split()[0] for row in (await taskyard(here, "tasks", "list"))[1].splitlines()[1:]] == [theirs["id"]]
        for arguments in (("tasks", "list", "-A"), ("tasks", "list", "--namespace", "ours"), ("tasks", "watch", "-A"), ("deliveries", "list", "-A")):
            code, _, said = await taskyard(here, *arguments)
            assert (code, "all-namespaces" in said) == (1, True), said
        assert (await taskyard(here, "tasks", "list", "-A", "--namespace", "x"))[0] == 2


@pytest.mark.parametrize("path", ["/tasks", "/deliveries", "/events"])
async def test_a_filter_by_namespace_shows_other_keys_their_own_alone(two: Two, path: str) -> None:
    for wanted in ("ours", "*", "nobodys"):
        refused = await two.theirs.get(f"{path}?namespace={wanted}")
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:taskyard:problem:forbidden"), "the same, whether there is one of this name or not"
        assert "all-namespaces" in refused.json()["detail"]
    if path != "/events":
        assert [item["namespace"] for item in (await two.ours.get(f"{path}?namespace=ours")).json()["items"]] == ["ours"]


async def test_without_keys_there_is_one_namespace_to_ask_for(api_settings: Settings, registry: Registry) -> None:
    made = create_app(api_settings, registry)
    async with made.router.lifespan_context(made), client_of(made) as client:
        task = await submit(client)
        assert await listed(client, "/tasks?namespace=default") == [("default", task["id"])]
        refused = await client.get("/tasks?namespace=ours")
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/namespace")


async def test_a_stream_of_all_namespaces_has_the_events_of_all_or_of_the_one_that_is_named(
    two: Two, api_settings: Settings, registry: Registry, engine: Engine
) -> None:
    key = new_key(engine, "o", namespace="ops", scopes=("tasks:read", "all-namespaces"))
    another = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with (
        served(another) as url,
        AsyncClient(base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}) as operator,
        reading(operator, "/events", **{"Last-Event-ID": "0"}) as every,
        reading(operator, "/events?namespace=theirs", **{"Last-Event-ID": "0"}) as some,
        reading(operator, f"/tasks/{two.task['id']}/stream") as one,
    ):
        theirs = await submit(two.theirs)
        assert await every.event() == ("task.submitted", two.task["id"])
        assert await every.event() == await some.event() == ("task.submitted", theirs["id"])
        assert await one.event() == ("task.submitted", two.task["id"])


async def test_many_namespaces_are_listed_as_few_are(app: FastAPI, two: Two, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_BRANCHES", 1)
    theirs = await submit(two.theirs)
    async with with_key(app, new_key(engine, "o", namespace="ops", scopes=("all-namespaces",))) as operator:
        for query in ("", "?status=pending", "?type=anything"):
            assert await listed(operator, f"/tasks{query}") == [("theirs", theirs["id"]), ("ours", two.task["id"])]


async def test_no_id_or_cursor_tells_how_much_others_did_in_between(two: Two, engine: Engine, api_settings: Settings, registry: Registry) -> None:
    another = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    await two.ours.post(f"/tasks/{two.task['id']}/hold")
    for _ in range(3):
        await submit(two.theirs)
    await two.ours.post(f"/tasks/{two.task['id']}/release")
    with engine.connect() as connection:
        drawn = connection.execute(text("SELECT max(id) FROM events")).scalar_one()
        newest = connection.execute(text("SELECT max(id) FROM deliveries")).scalar_one()
    history = f"/tasks/{two.task['id']}/events"
    events = (await two.ours.get(history)).json()["items"]
    assert [event["type"] for event in events] == ["task.submitted", "task.held", "task.released"]
    delivery = (await two.ours.get("/deliveries")).json()["items"][-1]
    for id_ in (*(event["id"] for event in events), delivery["event_id"], delivery["id"]):
        assert int(id_) > max(drawn, newest) * 1000, "far from the numbers that were drawn"
    first = (await two.ours.get(f"{history}?limit=1")).json()
    position = int.from_bytes(base64.urlsafe_b64decode(first["next_cursor"] + "==")[6:14])
    assert position == int(events[0]["id"])
    assert (await two.ours.get(f"{history}?limit=1&cursor={first['next_cursor']}")).json()["items"] == events[1:2]
    assert (await two.ours.get(f"/deliveries/{delivery['id']}")).json()["id"] == delivery["id"]
    for guessed in ("1", str(newest)):
        missing = await two.ours.get(f"/deliveries/{guessed}")
        assert (missing.status_code, missing.json()["detail"]) == (404, f"There is no delivery {guessed} here.")
    async with served(another) as url, AsyncClient(base_url=url, timeout=60, headers=two.ours.headers) as ours:
        for guessed in ("1", str(drawn)):
            assert (await ours.get("/events", headers={"Last-Event-ID": guessed})).status_code == 422, "nobody can ask for a place of their own making"
        async with reading(ours, "/events", **{"Last-Event-ID": events[0]["id"]}) as stream:
            told = [await stream.message() for _ in range(2)]
    assert [message["id"] for message in told] == [event["id"] for event in events[1:]]
    assert [json.loads(message["data"])["id"] for message in told] == [f"evt_{event['id']}" for event in events[1:]]


async def test_the_cursor_of_an_action_tells_no_number_either(app: FastAPI, two: Two, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST", 1)
    monkeypatch.setattr(deliveries, "BATCH", 1)
    await submit(two.ours)
    with engine.begin() as connection:
        ours = connection.execute(text("UPDATE deliveries SET status = 'dead', next_try_at = NULL WHERE namespace = 'ours' RETURNING id")).scalars().all()
    assert len(ours) > 1
    action = {"action": "redeliver", "filter": {"status": "dead"}}
    async with with_key(app, new_key(engine, "again", namespace="ours", scopes=("admin",))) as admin:
        first = (await admin.post("/deliveries/actions", json=action)).json()
        assert (first["matched"], first["changed"]) == (1, 1)
        assert int.from_bytes(base64.urlsafe_b64decode(first["next_cursor"] + "==")[6:14]) > max(ours) * 1000
        second = (await admin.post("/deliveries/actions", json=action | {"cursor": first["next_cursor"]})).json()
        assert (second["matched"], second["changed"]) == (1, 1)
    with engine.connect() as connection:
        again = connection.execute(text("SELECT id FROM deliveries WHERE namespace = 'ours' AND status = 'pending' ORDER BY id DESC")).scalars().all()
    assert again == sorted(ours, reverse=True)[:2], "newest first, none twice"


async def test_what_others_have_is_in_the_way_of_no_submission(two: Two, engine: Engine) -> None:
    same = {"Idempotency-Key": "same"}
    mine = await two.ours.post("/tasks", json={"type": "anything", "payload": 1}, headers=same)
    for body in ({"type": "anything", "payload": 1}, {"type": "anything", "payload": 1, "unique_key": "one"}):
        answer = await two.theirs.post("/tasks", json=body, headers=same if "unique_key" not in body else {})
        assert answer.status_code == 201, "another namespace's unique_key and Idempotency-Key are not ours"
        assert answer.json()["id"] not in (mine.json()["id"], two.task["id"])
    batch = await two.theirs.post("/tasks/batch", json={"tasks": [{"type": "anything", "payload": 1, "unique_key": "two"}]}, headers={"Idempotency-Key": "b"})
    assert batch.status_code == 201
    task = {"type": "anything", "payload": 1}
    for key, status in (("one", 409), ("two", 200)):
        for path, checked in (("validate", task | {"unique_key": key}), ("batch/validate", {"tasks": [task | {"unique_key": key}]})):
            answer = await two.ours.post(f"/tasks/{path}", json=checked)
            assert answer.status_code == status, "only live tasks of one's own namespace are in the way of a check"
    with engine.connect() as connection:
        counted = connection.execute(text("SELECT namespace, count(*) FROM tasks GROUP BY 1 ORDER BY 1")).all()
    assert [tuple(row) for row in counted] == [("ours", 2), ("theirs", 3)]


async def test_an_action_on_all_is_on_all_of_ones_own(two: Two) -> None:
    for chosen in ({}, {"tag": "secret"}, {"q": two.task["id"]}):
        for action in ("cancel", "hold"):
            answer = await two.theirs.post("/tasks/actions", json={"action": action, "filter": chosen})
            assert answer.json() == {"matched": 0, "changed": 0}
    for of_deliveries in ({}, {"task_id": two.task["id"]}, {"route": "all ends"}):
        answer = await two.theirs.post("/deliveries/actions", json={"action": "redeliver", "filter": of_deliveries})
        assert answer.json() == {"matched": 0, "changed": 0}
    assert (await two.ours.get(f"/tasks/{two.task['id']}")).json() == two.task


async def test_a_stream_of_all_is_of_all_of_ones_own(two: Two, api_settings: Settings, registry: Registry) -> None:
    another = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with (
        served(another) as url,
        AsyncClient(base_url=url, timeout=60, headers=two.theirs.headers) as theirs,
        reading(theirs, "/events", **{"Last-Event-ID": "0"}) as stream,
    ):
        await submit(two.ours)
        own = await submit(theirs)
        assert await stream.event() == ("task.submitted", own["id"]), "the two of the other namespace came before"


async def test_a_revoked_or_expired_key_ends_soon_and_a_rotated_one_overlaps(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 0.0)
    old = new_key(engine, "ci", scopes=EVERYTHING)
    with engine.begin() as connection:
        new = keys.rotate(connection, "ci", overlap=timedelta(hours=1)).secret
    short = new_key(engine, "short", lasts=timedelta(milliseconds=1))
    async with with_key(app, old) as before, with_key(app, new) as after, with_key(app, short) as ended:
        assert (await before.get("/queues")).status_code == (await after.get("/queues")).status_code == 200
        assert (await ended.get("/tasks")).status_code == 401
        with engine.begin() as connection:
            keys.revoke(connection, old.split("_")[1])
        assert (await before.get("/tasks")).status_code == 401
        assert (await after.get("/tasks")).status_code == 200
        with engine.begin() as connection:
            keys.rotate(connection, "ci", overlap=timedelta(hours=1))
            with pytest.raises(InvalidInput, match="rotated out"):
                keys.rotate(connection, new.split("_")[1], overlap=timedelta(hours=1))
            keys.revoke(connection, new.split("_")[1])
        assert (await after.get("/tasks")).status_code == 401


async def test_a_key_is_remembered_for_a_while_and_not_for_longer_than_it_lasts(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 3600.0)
    looked_up: list[str] = []
    ask = keys.look_up_all

    def asking(connection: Connection, shown: Sequence[str]) -> dict[str, keys.Caller]:
        looked_up.extend(shown)
        return ask(connection, shown)

    monkeypatch.setattr(keys, "look_up_all", asking)
    async with with_key(app, new_key(engine)) as client, with_key(app, new_key(engine, "short", lasts=timedelta(seconds=1))) as short:
        for _ in range(5):
            assert (await client.get("/tasks")).status_code == 200
        assert len(looked_up) == 1
        answer = await short.get("/tasks")
        while answer.status_code == 200:
            await asyncio.sleep(0.05)
            answer = await short.get("/tasks")
        assert answer.status_code == 401


async def test_when_a_key_was_last_used_is_known_to_the_minute(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH", 0.0)
    key = new_key(engine)

    def last_used() -> Any:
        with engine.connect() as connection:
            return keys.listed(connection)[0].last_used_at

    assert last_used() is None
    async with with_key(app, key) as client:
        await client.get("/tasks")
        first = last_used()
        assert first is not None
        await client.get("/tasks")
        assert last_used() == first
        with engine.begin() as connection:
            connection.execute(text("UPDATE keys SET last_used_at = now() - interval '2 minutes'"))
        await client.get("/tasks")
        assert last_used() > first


def from_(app: FastAPI, address: str, key: str) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(app, client=(address, 1)), base_url="http://test.localhost/api/v1", headers={"X-API-Key": key}, timeout=30)


def guess(number: int = 0) -> str:
    return f"ty_{number:016x}_{'x' * 43}"


@pytest.mark.parametrize("spread", [False, True], ids=["one wrong key", "many wrong keys"])
async def test_wrong_keys_are_told_to_slow_down_and_lock_no_right_one_out(app: FastAPI, engine: Engine, spread: bool) -> None:
    known, unknown = new_key(engine), new_key(engine, "unknown")
    async with (
        from_(app, "2001:db8::1", known) as right,
        from_(app, "2001:db8::2", guess()) as wrong,
        from_(app, "2001:db8::3", unknown) as late,
        from_(app, "2001:db8:0:1::1", guess(1)) as elsewhere,
    ):
        assert (await right.get("/tasks")).status_code == 200
        shown = [{"X-API-Key": guess(number if spread else 0)} for number in range(3 * int(access.BURST))]
        answers = await asyncio.gather(*(wrong.get("/tasks", headers=key) for key in shown))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {401, 429}
        assert statuses.count(401) < 2 * access.BURST, "many at once are no way around it"
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["type"] == "urn:taskyard:problem:rate-limited"
        assert "is wrong" in refused.json()["detail"], "a client with a wrong key must not think that waiting helps"
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        assert (await late.get("/tasks")).status_code == 200, "a key that this process has not seen, from the same address"
        assert (await right.get("/tasks")).status_code == 200
        assert (await elsewhere.get("/tasks")).status_code == 401


async def test_a_right_key_passes_among_wrong_ones_that_come_at_once(app: FastAPI, engine: Engine) -> None:
    keys_ = [new_key(engine, f"k{number}") for number in range(5)]
    # The same ids with other secrets, too: who knows a key's id must not lock it out.
    wrong = [guess(number) for number in range(300)] + [f"{key[:20]}{'x' * 43}" for key in keys_ for _ in range(20)]
    async with from_(app, "192.0.2.1", "") as client:
        answers = await asyncio.gather(*(client.get("/tasks", headers={"X-API-Key": key}) for key in [*wrong, *keys_, *wrong]))
    statuses = [answer.status_code for answer in answers]
    assert statuses[len(wrong) : len(wrong) + 5] == [200] * 5
    assert statuses.count(200) == 5


async def test_many_wrong_keys_share_statements(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = keys.look_up_all

    def asking(connection: Connection, shown: Sequence[str]) -> dict[str, keys.Caller]:
        asked.append(len(shown))
        return ask(connection, shown)

    monkeypatch.setattr(keys, "look_up_all", asking)
    async with from_(app, "192.0.2.1", "") as client:
        await asyncio.gather(*(client.get("/tasks", headers={"X-API-Key": guess(number % 200)}) for number in range(400)))
        assert sum(asked) <= 200, "a wrong key is not looked up again at once"
        assert len(asked) < 50


async def test_keys_cost_nothing_while_the_database_can_not_say_whether_they_are_right(app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key(engine)
    ask = keys.look_up_all

    def away(connection: Connection, shown: Sequence[str]) -> dict[str, keys.Caller]:
        raise Unavailable

    async with from_(app, "192.0.2.1", key) as right, from_(app, "192.0.2.1", guess()) as wrong:
        monkeypatch.setattr(keys, "look_up_all", away)
        for client in (right, wrong):
            assert {(await client.get("/tasks")).status_code for _ in range(2 * int(access.BURST))} == {503}
        monkeypatch.setattr(keys, "look_up_all", ask)
        assert (await right.get("/tasks")).status_code == 200
        assert (await wrong.get("/tasks")).status_code == 401, "no try of the outage has counted"


@pytest.mark.parametrize(("proxies", "believed"), [((), False), (("10.0.0.0/8",), False), (("127.0.0.0/8",), True)])
async def test_forwarded_addresses_count_from_trusted_proxies_only(
    api_settings: Settings, registry: Registry, proxies: tuple[str, ...], believed: bool
) -> None:
    made = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry)
    async with served(made, trusted_proxies=proxies) as url, AsyncClient(base_url=url, timeout=60) as client:
        headers = [{"X-API-Key": guess(number), "X-Forwarded-For": f"192.0.2.{number}"} for number in range(2 * int(access.BURST))]
        statuses = [(await client.get("/tasks", headers=one)).status_code for one in headers]
    assert (429 in statuses) is not believed


def test_what_an_address_may_try_runs_out_and_comes_back() -> None:
    failures = access.Failures()
    for _ in range(int(access.BURST)):
        assert failures.take("a", 0.0) == 0
    assert failures.take("a", 0.0) == 1 / access.PER_SECOND
    assert failures.take("b", 0.0) == 0
    assert failures.take("a", 1 / access.PER_SECOND) == 0


#: Every call that changes something, but for submissions: a body that is right, and what the audit says of it.
CHANGES: dict[tuple[str, str], tuple[Any, str, str]] = {
    ("PATCH", "/api/v1/tasks/{task_id}"): ({"priority": 9}, "task.update", "{task_id}"),
    ("POST", "/api/v1/tasks/{task_id}/hold"): (None, "task.hold", "{task_id}"),
    ("POST", "/api/v1/tasks/{task_id}/release"): (None, "task.release", "{task_id}"),
    ("POST", "/api/v1/tasks/{task_id}/cancel"): (None, "task.cancel", "{task_id}"),
    ("POST", "/api/v1/tasks/{task_id}/retry"): (None, "task.retry", "{task_id}"),
    ("POST", "/api/v1/tasks/actions"): ({"action": "hold", "filter": {"tag": "secret"}}, "tasks.hold", '1 of {{"tag":["secret"]}}'),
    ("POST", "/api/v1/queues/{name}/pause"): (None, "queue.pause", "io"),
    ("POST", "/api/v1/queues/{name}/resume"): (None, "queue.resume", "io"),
    ("POST", "/api/v1/deliveries/{delivery_id}/redeliver"): (None, "delivery.redeliver", "{delivery_id}"),
    ("POST", "/api/v1/deliveries/actions"): ({"action": "redeliver", "filter": {"route": "all ends"}}, "deliveries.redeliver", '2 of {{"route":["all ends"]}}'),
}


async def test_every_call_that_changes_something_leaves_who_did_it_and_from_where(app: FastAPI, two: Two, engine: Engine) -> None:
    submissions = {("POST", f"/api/v1/tasks{end}") for end in ("", "/batch", "/validate", "/batch/validate")}
    asked = {(method, path) for method, path in walk.calls(app) if method not in ("GET", "HEAD")} - submissions
    assert asked == set(CHANGES), "a call that changes something has an entry in the audit: say here which"
    ids = {"task_id": two.task["id"], "delivery_id": two.delivery["id"], "name": "io"}
    for (method, path), (body, verb, target) in CHANGES.items():
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM audit"))
            connection.execute(text("UPDATE deliveries SET status = 'dead', next_try_at = NULL"))
        answer = await two.ours.request(method, f"http://test{walk.address(path, ids)}", json=body)
        assert answer.status_code == 200, answer.text
        with engine.connect() as connection:
            [entry] = audit.entries(connection, 10)
        found = (entry.key_name, entry.namespace, entry.address, entry.verb, entry.target)
        assert found == ("a", "ours", "127.0.0.1", verb, target.format(**ids)), path
        assert entry.key_id in two.ours.headers["Authorization"]


async def test_what_was_refused_or_only_counted_is_no_change(two: Two, engine: Engine) -> None:
    assert (await two.ours.post("/queues/nowhere/pause")).status_code == 404
    assert (await two.ours.post(f"/tasks/{two.task['id']}/retry")).status_code == 409
    assert (await two.theirs.post(f"/tasks/{two.task['id']}/cancel")).status_code == 404
    for of, action in (("tasks", "cancel"), ("deliveries", "redeliver")):
        assert (await two.ours.post(f"/{of}/actions", json={"action": action, "filter": {}, "dry_run": True})).status_code == 200
    with engine.connect() as connection:
        assert audit.entries(connection, 10) == []


async def test_without_keys_a_change_is_recorded_with_where_it_came_from(api_settings: Settings, registry: Registry, engine: Engine) -> None:
    made = create_app(api_settings, registry)
    async with made.router.lifespan_context(made), client_of(made) as client:
        assert (await client.post("/queues/io/pause")).status_code == 200
    with engine.connect() as connection:
        [entry] = audit.entries(connection, 10)
    assert (entry.key_id, entry.key_name, entry.address, entry.verb, entry.target) == ("", "", "127.0.0.1", "queue.pause", "io")


def test_old_entries_of_the_audit_are_deleted_the_oldest_first(engine: Engine) -> None:
    with engine.begin() as connection:
        for day in (3, 2, 1):
            audit.record(connection, Actor.at_command_line(), "queue.pause", f"{day} days ago")
            connection.execute(
                text("UPDATE audit SET time = now() - :day * interval '1 day' WHERE target = :target"), {"day": day, "target": f"{day} days ago"}
            )
        assert audit.purge(connection, 36 * 3600, 1) == 1
        assert [entry.target for entry in audit.entries(connection, 10)] == ["1 days ago", "2 days ago"]
        assert audit.purge(connection, 36 * 3600, 200) == 1
        assert audit.purge(connection, 36 * 3600, 200) == 0
        assert [entry.target for entry in audit.entries(connection, 10)] == ["1 days ago"]


async def test_a_refused_request_is_logged_with_its_address_and_the_keys_id_and_never_the_key(
    app: FastAPI, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskyard_api.watch")
    right = new_key(engine, "reader", scopes=("tasks:read",))
    id_, secret = right.removeprefix("ty_").split("_", 1)
    wrong = f"ty_{id_}_{secret[::-1]}"
    transport = ASGITransport(app, client=("192.0.2.7", 1))
    async with AsyncClient(transport=transport, base_url="http://test.localhost/api/v1") as client:
        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            assert (await client.get("/tasks")).status_code == 401
            assert (await client.get("/tasks", headers={"X-API-Key": wrong})).status_code == 401
            assert (await client.post("/tasks", json={}, headers={"X-API-Key": right})).status_code == 403
            statuses = {(await client.get("/tasks", headers={"X-API-Key": wrong})).status_code for _ in range(3 * int(access.BURST))}
            assert statuses == {401, 429}
            assert (await client.get("/tasks", headers={"X-API-Key": right})).status_code == 200
            assert (await client.get("/tasks")).status_code == 401, "and nothing is left of the request before"
    refused = [line for line in lines if line["event"] == "request.done"]
    assert {(line["status"], line.get("key_id"), line["address"]) for line in refused} == {
        (401, None, "192.0.2.7"),
        (401, id_, "192.0.2.7"),
        (403, id_, "192.0.2.7"),
        (429, id_, "192.0.2.7"),
    }
    assert all(line["log_level"] == "info" for line in refused)
    assert secret not in str(lines)
    assert secret[::-1] not in str(lines)


SECRETS = ("the payload", "the result", "the tag", "the note", "the unique key", "the progress")


@pytest.fixture
async def kept_secret(app: FastAPI, engine: Engine) -> AsyncIterator[tuple[AsyncClient, dict[str, Any]]]:
    """A key that may write and not read, and a task that holds secrets, which was submitted with an Idempotency-Key."""
    async with with_key(app, new_key(engine, "writer", scopes=("tasks:write",))) as writer:
        held = {"type": "anything", "payload": "the payload", "tags": ["the tag"], "metadata": {"note": "the note"}, "unique_key": "the unique key"}
        made = await writer.post("/tasks", json=held, headers={"Idempotency-Key": "one"})
        assert (made.status_code, made.json()["payload"]) == (201, "the payload"), "what the request itself said"
        yield writer, made.json() | {"sent": held}


def ended(engine: Engine, id_: str, status: str) -> None:
    force(engine, id_, status)
    with engine.begin() as connection:
        values = {"id": id_, "result": '"the result"', "progress": '{"message": "the progress"}', "error": '{"message": "the result"}'}
        connection.execute(text("UPDATE tasks SET result = CAST(:result AS jsonb), progress = CAST(:progress AS jsonb) WHERE id = :id"), values)


async def test_a_key_that_may_not_read_learns_nothing_of_a_task_by_writing_to_it(
    kept_secret: tuple[AsyncClient, dict[str, Any]], app: FastAPI, engine: Engine
) -> None:
    writer, task = kept_secret
    at = f"/tasks/{task['id']}"
    answers = [await writer.post(f"{at}/{verb}") for verb in ("hold", "release", "hold")]
    answers += [await writer.patch(at, json=patch) for patch in ({"priority": 1}, {"tags": ["the tag"]}, {"status": "pending"})]
    ended(engine, task["id"], "failed")
    answers += [await writer.post(f"{at}/retry"), await writer.post(f"{at}/cancel")]
    ended(engine, task["id"], "succeeded")
    again = {"Idempotency-Key": "one"}
    answers += [await writer.post("/tasks", json=task["sent"], headers=again | more) for more in ({}, {"Prefer": "wait=1"})]
    batch = {"tasks": [{"type": "anything", "payload": "the payload"}]}
    many = {"Idempotency-Key": "many"}
    first, second = [await writer.post("/tasks/batch", json=batch, headers=many) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 200)
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert (answer.json()["id"], answer.headers["ETag"]) == (task["id"], f'"{answer.json()["version"]}"')
        assert set(answer.json()) == set(TaskReceipt.model_fields)
    assert [set(item) for item in second.json()["items"]] == [set(TaskReceipt.model_fields)]
    for answer in (*answers, second):
        assert not [secret for secret in SECRETS if secret in answer.text], answer.text
    waited = asyncio.create_task(writer.post("/tasks", json={"type": "anything", "payload": "mine"}, headers={"Prefer": "wait=20"}))
    with engine.connect() as connection:
        while (made := connection.execute(text("SELECT id FROM tasks WHERE payload = '\"mine\"' AND awaited")).scalar()) is None:
            await asyncio.sleep(0.01)
            connection.rollback()
    ended(engine, str(made), "succeeded")
    answer = await waited
    assert (answer.status_code, answer.json()["status"], "the result" in answer.text) == (201, "succeeded", False)
    async with with_key(app, new_key(engine, "both", scopes=("tasks:read", "tasks:write"))) as both:
        assert (await both.post("/tasks", json=task["sent"], headers=again)).json()["result"] == "the result"


async def test_the_document_says_what_a_key_that_may_not_read_gets_of_a_write(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine)) as client:
        document = (await client.get("http://test.localhost/openapi.json")).json()
    paths = document["paths"]
    assert {"$ref": "#/components/schemas/TaskReceipt"} in document["components"]["schemas"]["TaskAnswer"]["oneOf"]
    assert document["components"]["schemas"]["TaskBatch"]["properties"]["items"]["items"] == {"$ref": "#/components/schemas/TaskAnswer"}
    task, written = ({"$ref": f"#/components/schemas/{name}"} for name in ("Task", "TaskAnswer"))
    for path in ("/api/v1/tasks/{task_id}/hold", "/api/v1/tasks/{task_id}/retry", "/api/v1/tasks/{task_id}/cancel", "/api/v1/tasks/{task_id}/release"):
        assert paths[path]["post"]["responses"]["200"]["content"]["application/json"]["schema"] == written
    assert paths["/api/v1/tasks/{task_id}"]["patch"]["responses"]["200"]["content"]["application/json"]["schema"] == written
    for status in ("200", "201"):
        assert paths["/api/v1/tasks"]["post"]["responses"][status]["content"]["application/json"]["schema"] == written
    assert paths["/api/v1/tasks/{task_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == task


async def test_the_document_says_which_key_each_call_needs(app: FastAPI, engine: Engine) -> None:
    async with with_key(app, new_key(engine)) as client:
        document = (await client.get("http://test.localhost/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    post = document["paths"]["/api/v1/tasks"]["post"]
    assert post["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "403", "429"} <= set(post["responses"])
    assert "`tasks:write`" in post["description"]
    assert "security" not in document["paths"]["/health/live"]["get"]


def test_keys_are_asked_for_wherever_strangers_can_call() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.com", ""):
        assert Settings(api=ApiSettings(host=host)).asks_for_keys
        assert not Settings(api=ApiSettings(host=host), auth=AuthSettings(mode="none")).asks_for_keys
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not Settings(api=ApiSettings(host=host)).asks_for_keys
        assert Settings(api=ApiSettings(host=host), auth=AuthSettings(mode="keys")).asks_for_keys


async def test_only_an_admin_sees_the_traceback_of_a_failed_plugin(api_settings: Settings, engine: Engine) -> None:
    broken = Plugin("broken", state="failed", reason="KeyError: 'x'", where="/srv/words.py:12, in count", traceback="Traceback ...")
    app = create_app(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), Registry([broken], hooks()))
    async with app.router.lifespan_context(app):
        for scopes, expected in ((("tasks:read",), None), (("tasks:read", "admin"), "Traceback ...")):
            async with with_key(app, new_key(engine, scopes[-1].replace(":", "-"), scopes=scopes)) as reader:
                [told] = (await reader.get("/plugins")).json()["items"]
            assert (told["where"], told["traceback"]) == ("/srv/words.py:12, in count", expected)
