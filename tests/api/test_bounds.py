"""Each limit that the reference promises: what is at it is taken, and what is beyond is refused with a problem that names the place."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient
from pydantic import SecretStr

from taskyard.plugins import Registry
from taskyard.settings import ApiSettings, DatabaseSettings, Settings
from taskyard_api.app import create_app
from tests.databases import cloned

from .conftest import client_of, submit

pytestmark = pytest.mark.anyio
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "rest.md"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """A request that is at a limit for ``most``, and beyond it for any more."""

    most: int
    request: Callable[[int], tuple[str, dict[str, Any]]]
    pointer: str
    status: int = 422
    #: A body as large as this is let in, so that it is not that limit which is met.
    body: int = MIB
    slug: str = "invalid-request"


def task(payload: Any = None, **options: Any) -> tuple[str, dict[str, Any]]:
    return "/tasks", {"content": json.dumps({"type": "anything", "payload": payload, **options}, ensure_ascii=False).encode()}


def nested(levels: int) -> Any:
    """A payload that makes a task of so many levels: the task itself is one."""
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return value


def sized(size: int, of: Callable[[str], tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """The request of ``of`` for a text that makes its JSON ``size`` bytes long, half of them in characters of two bytes."""
    rest = size - len('{"x":["",""]}')
    few = min(rest // 2 // 2, 400_000)
    return of("\u00e9" * few + "\n" + "x" * (rest - 2 * few))


def halves(text: str) -> dict[str, Any]:
    first, _, second = text.partition("\n")
    return {"x": [first, second]}


def listed(query: str) -> tuple[str, dict[str, Any]]:
    return f"/tasks?{query}", {}


LIMITS = {
    "a request's body, counted as it comes in": Limit(MIB, lambda n: ("/tasks", {"content": task(1)[1]["content"].ljust(n)}), "", 413, slug="too-large"),
    "tasks in a batch": Limit(1000, lambda n: ("/tasks/batch", {"json": {"tasks": [{"type": "anything", "payload": 1}] * n}}), "/tasks"),
    "levels of nesting in a task": Limit(64, lambda n: task(nested(n)), "/payload" + "/0" * 63),
    "digits of a whole number": Limit(4000, lambda n: ("/tasks", {"content": f'{{"type": "anything", "payload": [{"9" * n}]}}'}), "/payload/0"),
    "a payload, as JSON": Limit(MIB, lambda n: sized(n, lambda text: task(halves(text))), "/payload", body=3 * MIB),
    "names in one object of a payload": Limit(10_000, lambda n: task([{str(i): 0 for i in range(n)}]), "/payload/0"),
    "characters of one string or name in a payload": Limit(1_000_000, lambda n: task({"a": ["x" * n]}), "/payload/a/0"),
    "tags of a task": Limit(32, lambda n: task(tags=[str(i) for i in range(n)]), "/tags"),
    "characters of each tag": Limit(128, lambda n: task(tags=["x" * n]), "/tags/0"),
    "`metadata`, as JSON": Limit(16 * 1024, lambda n: sized(n, lambda text: task(metadata=halves(text))), "/metadata"),
    "characters of a `unique_key`": Limit(255, lambda n: task(unique_key="x" * n), "/unique_key"),
    "characters of an `Idempotency-Key`": Limit(
        255, lambda n: ("/tasks", {"json": {"type": "anything", "payload": 1}, "headers": {"Idempotency-Key": "x" * n}}), "/Idempotency-Key"
    ),
    "items on a page": Limit(200, lambda n: listed(f"limit={n}"), "/limit"),
    "values of one filter": Limit(50, lambda n: listed("&".join(f"tag={i}" for i in range(n))), "/tag"),
    "characters of each value of a filter": Limit(255, lambda n: listed(f"tag={'x' * n}"), "/tag/0"),
}
#: Limits of what does not come by one request, and the tests that hold them.
ELSEWHERE = {
    "a task's log lines, as JSON": ("worker/test_task_logs.py", "logline.LIMIT"),
    "characters of a log line's message, and of each of its fields": ("worker/test_loglines.py", "8000"),
    "a result, as JSON": ("worker/test_runs.py", "result-too-large"),
    "seconds of `Prefer: wait`": ("api/test_waits.py", "wait=60"),
}


@pytest.fixture(scope="module")
async def clients(postgres_url: str, template: str, registry: Registry) -> AsyncIterator[dict[int, AsyncClient]]:
    """Services by the largest body that they take."""
    with cloned(postgres_url, template) as url:
        small, large = (
            create_app(Settings(database=DatabaseSettings(url=SecretStr(url)), api=ApiSettings(max_body_bytes=size)), registry) for size in (MIB, 3 * MIB)
        )
        async with small.router.lifespan_context(small), large.router.lifespan_context(large), client_of(small) as one, client_of(large) as other:
            yield {MIB: one, 3 * MIB: other}


async def ask(client: AsyncClient, path: str, options: dict[str, Any]) -> Any:
    return await client.request("POST" if options else "GET", path, **options)


@pytest.mark.parametrize("name", LIMITS)
async def test_a_limit_is_what_the_reference_says_and_names_its_place(clients: dict[int, AsyncClient], name: str) -> None:
    limit = LIMITS[name]
    client = clients[limit.body]
    taken = await ask(client, *limit.request(limit.most))
    assert taken.status_code in (200, 201), taken.text[:500]
    refused = await ask(client, *limit.request(limit.most + 1))
    assert refused.status_code == limit.status, refused.text[:500]
    problem = refused.json()
    assert problem["type"] == f"urn:taskyard:problem:{limit.slug}"
    if limit.pointer:
        assert [error["pointer"] for error in problem["errors"]] == [limit.pointer]
        assert problem["errors"][0]["detail"]
    assert len(refused.content) < 2000, "a problem is short, however long the request was"
    await submit(client)


def promised() -> dict[str, str]:
    """The table of the reference: what is limited, and what it says of it."""
    table = REFERENCE.read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return dict(rows[2:])


def test_every_promised_limit_is_tried_here() -> None:
    assert set(promised()) == set(LIMITS) | set(ELSEWHERE)
    for name, limit in LIMITS.items():
        said = {f"{limit.most:,}", f"{limit.most // 1024} KiB", f"{limit.most // MIB} MiB"}
        assert promised()[name].rpartition(", ")[2] in said, name
    for file, words in ELSEWHERE.values():
        assert words in (Path(__file__).parents[1] / file).read_text(), file


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels at line 1 column 202"),
        ('{"payload": ' + "1" * 1_000_000 + "}", "a number of more than 4000 digits at line 1 column"),
        ('{"payload": -' + "1" * 4_400 + "}", "a number of more than 4000 digits at line 1 column"),
        ('{"a": 1, "a": 2}', 'Detected duplicate key "a" at line 1 column'),
        (f'{{"{"x" * 100_000}": 1, "{"x" * 100_000}": 2}}', "at line 1 column 2000"),
    ],
    ids=["depth", "digits", "digits below zero", "a name twice", "a long name twice"],
)
async def test_what_the_parser_bounds_is_told_with_the_bound_and_the_place(clients: dict[int, AsyncClient], body: str, said: str) -> None:
    answer = await clients[MIB].post("/tasks", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["errors"][0]["detail"]
    assert len(answer.content) < 1000
