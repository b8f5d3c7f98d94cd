"""What type checkers know of a submitted task: `make check` holds the positive half, and the negative half is tried here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, assert_type

from pydantic import BaseModel

from taskyard import Context, Handler, handler
from taskyard.client import AsyncClient, AsyncHandle, Client, Event, Handle, New, Page, Task

ROOT = Path(__file__).parents[2]


class Fetch(BaseModel):
    url: str


class Site(BaseModel):
    size: int


@handler("sites.fetch")
async def fetch(payload: Fetch, ctx: Context) -> Site:
    return Site(size=len(payload.url))


@handler("sites.visit")
async def visit(payload: Fetch) -> None: ...


@handler("sites.count")
def count(payload: list[Fetch]) -> int:
    return len(payload)


@handler("sites.look")
def look(payload: Fetch, ctx: Context) -> list[Site]:
    return []


def a_handler_knows_its_types() -> None:
    assert_type(fetch, Handler[Fetch, Site])
    assert_type(visit, Handler[Fetch, None])
    assert_type(count, Handler[list[Fetch], int])
    assert_type(look, Handler[Fetch, list[Site]])


def a_client_that_blocks_knows_results(client: Client) -> None:
    assert_type(client.submit(fetch, Fetch(url="x"), priority=9), Handle[Site])
    assert_type(client.submit(fetch, Fetch(url="x")).result(timeout=5), Site)
    assert_type(client.submit(count, [Fetch(url="x")]).result(), int)
    assert_type(client.submit("sites.fetch", {"url": "x"}).result(), Any)
    assert_type(client.batch([New(fetch, Fetch(url="x")), New(fetch, Fetch(url="y"))]), tuple[Handle[Site], ...])
    assert_type(client.handle("id", look), Handle[list[Site]])
    assert_type(client.get("id"), Task)
    assert_type(client.page(status="failed"), Page[Task])
    assert_type(client.list(tag=["a"]), Iterator[Task])
    assert_type(client.follow("id"), Iterator[Event])


async def a_client_that_awaits_knows_the_same(client: AsyncClient) -> None:
    assert_type(await client.submit(fetch, Fetch(url="x"), priority=9), AsyncHandle[Site])
    assert_type(await (await client.submit(fetch, Fetch(url="x"))).result(timeout=5), Site)
    assert_type(await (await client.submit("sites.fetch", {"url": "x"})).result(), Any)
    assert_type(await client.batch([New(look, Fetch(url="x"))]), tuple[AsyncHandle[list[Site]], ...])
    assert_type(await client.get("id"), Task)
    assert_type(client.list(tag=["a"]), AsyncGenerator[Task, None])
    assert_type(client.follow("id"), AsyncGenerator[Event, None])


WRONG = f"""
from taskyard.client import Client
from {__name__.replace("tests.core.", "")} import fetch, Fetch

client = Client()
client.submit(fetch, 3)
client.submit(fetch, Fetch(url="x"), prio=9)
client.submit(fetch, Fetch(url="x")).result().colour
client.page(statsu="failed")
client.update("id", priority="high")
"""


def test_type_checkers_find_a_wrong_payload_option_filter_and_use_of_a_result(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nmypy_path = {ROOT / 'core'}:{Path(__file__).parent}\nplugins = pydantic.mypy\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--follow-imports", "silent", "wrong.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error: " in line}
    assert found == {6, 7, 8, 9, 10}, run.stdout + run.stderr


def test_what_checkers_were_told_is_so() -> None:
    """The functions above are for checkers; their handlers are real."""
    assert (fetch.payload.validate_python({"url": "x"}), fetch.result.validate_python({"size": 1})) == (Fetch(url="x"), Site(size=1))
    a_handler_knows_its_types()
