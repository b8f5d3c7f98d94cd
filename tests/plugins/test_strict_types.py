"""pyright and mypy, both strict: what we write for others to begin with has no error, and a wrong program has one in each wrong line and in no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from taskyard.scaffold import make_plugin
from tests.client_tools import TOOLS, install_client_tools
from tests.docs.markdown import ROOT, blocks

#: Most of what mypy looks at is Taskyard, and the same the next time.
CACHE = ROOT / ".mypy_cache" / "strict-types"

DEFINITIONS = """
from pydantic import BaseModel

from taskyard import Context, Retry, TaskFailed, handler
from taskyard.client import AsyncClient, Client, New


class Text(BaseModel):
    text: str


class Vector(BaseModel):
    numbers: list[float]


class Settings(BaseModel):
    model: str


@handler("texts.embed", retry=Retry(max_attempts=3, on=ConnectionError), timeout=60)
async def embed(payload: Text, ctx: Context[Settings]) -> Vector:
    if not payload.text:
        raise TaskFailed("There is no text.", code="empty")
    ctx.log.info("embedding", model=ctx.config.model)
    ctx.submit(length, payload, priority=9, tags=ctx.tags)
    return Vector(numbers=[1.0])


@handler("texts.length")
def length(payload: Text) -> int:
    return len(payload.text)


@handler("texts.lengths", batch=10)
def lengths(payloads: list[Text], contexts: list[Context]) -> list[int | Exception]:
    return [len(payload.text) for payload in payloads]
"""

RIGHT = (
    """
from typing import assert_type

from taskyard import Handler
from taskyard.client import AsyncHandle, Handle
"""
    + DEFINITIONS
    + """

def submit(client: Client) -> float:
    handle = client.submit(embed, Text(text="x"), priority=7, tags=["a"])
    assert_type(handle, Handle[Vector])
    assert_type(client.submit(lengths, Text(text="x")).result(), int)
    assert_type(client.batch([New(embed, Text(text="x")), New(embed, Text(text="y"))]), tuple[Handle[Vector], ...])
    for event in handle.follow():
        print(event.type, event.data.get("fraction"))
    for task in client.list(type=["texts.embed"], status="failed", fields=["error"]):
        print(task.id, task.error.message if task.error else "")
    named = client.submit("texts.embed", {"text": "x"})
    print(named.task.status, named.result(timeout=60))
    return sum(client.handle(str(handle.id), embed).result().numbers)


async def submit_and_await(client: AsyncClient) -> int:
    handle = await client.submit(length, Text(text="x"))
    assert_type(handle, AsyncHandle[int])
    return await handle.result()


def handlers() -> list[Handler[Text, Vector] | Handler[Text, int]]:
    return [embed, length, lengths]
"""
)

#: Each line that is wrong says so.
WRONG = (
    DEFINITIONS
    + """

def use(client: Client) -> None:
    client.submit(embed, Vector(numbers=[]))  # wrong: another payload
    client.submit(embed, {"txt": "x"})  # wrong: a dict, where the handler has a model
    client.submit(embed, Text(text=3))  # wrong: a field's type
    client.submit(embed, Text(text="x"), prio=3)  # wrong: no such option
    client.submit(embed, Text(text="x"), priority="high")  # wrong: an option's type
    client.submit(embed, Text(text="x")).result().colour  # wrong: the result has no such field
    name: str = client.submit(length, Text(text="x")).result()  # wrong: the result is a number
    client.batch([New(embed, Vector(numbers=[]))])  # wrong: another payload in a batch
    client.handle("id", embed).result().colour  # wrong: the result of a handle by id
    client.list(statsu="failed")  # wrong: no such filter
    client.update("id", priority="high")  # wrong: a change's type
    print(name)


async def await_wrongly(client: AsyncClient) -> str:
    handle = await client.submit(length, Text(text="x"))
    return await handle.result()  # wrong: the result is a number


@handler("texts.one", retry=3)  # wrong: a number is no policy
def one(payload: Text, ctx: Context[Settings]) -> int:
    ctx.submit(embed, Vector(numbers=[]))  # wrong: a child's payload
    ctx.submit("texts.embed", {}, prio=3)  # wrong: a child's option
    ctx.progres(0.5)  # wrong: no such method
    print(ctx.config.modle)  # wrong: no such setting
    return 1


@handler("texts.two", aliases="texts.old")
def two(payload: Text) -> int:
    return 1


@handler("texts.three", batch=10)  # wrong: no list
def three(payload: Text) -> int:
    return 1
"""
)


def wrong_lines(program: str) -> set[int]:
    return {number for number, line in enumerate(program.splitlines(), 1) if "# wrong" in line}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both new plugins, the examples, the programs of the patterns' page, and a client script."""
    made = tmp_path_factory.mktemp("typed")
    make_plugin("strict-words", "handler", made)
    make_plugin("strict-tell", "notifier", made)
    shutil.copytree(ROOT / "examples", made / "examples")
    for block in blocks(ROOT / "docs" / "patterns.md", "python"):
        (made / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    (made / "right.py").write_text(RIGHT)
    (made / "wrong.py").write_text(WRONG)
    install_client_tools()
    return made


def pyright(folder: Path) -> list[tuple[str, int, str]]:
    """(file, line, message) of all errors and warnings."""
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(path) for path in sources(folder)]}))
    environment = {"PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    command = [str(TOOLS / "bin" / "basedpyright"), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    told = json.loads(run.stdout)
    assert told["summary"]["filesAnalyzed"] == len(list(folder.rglob("*.py"))), run.stdout
    return [(Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"]) for one in told["generalDiagnostics"]]


def mypy(folder: Path) -> list[tuple[str, int, str]]:
    """(file, line, message) of all errors."""
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    files = sorted(path for path in folder.rglob("*.py"))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", f"--cache-dir={CACHE}", "--no-error-summary", *map(str, files)]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(map(str, sources(folder)))}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = [re.fullmatch(r"(.+?):(\d+): error: (.*)", line) for line in run.stdout.splitlines()]
    return [(Path(one[1]).name, int(one[2]), one[3]) for one in found if one]


def sources(folder: Path) -> list[Path]:
    """Where the new plugins' packages are."""
    return sorted(folder.glob("*/src"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checker", [pyright, mypy])
def test_a_strict_checker_finds_each_wrong_line_and_nothing_else(checker: Callable[[Path], list[tuple[str, int, str]]], folder: Path) -> None:
    found = checker(folder)
    assert [one for one in found if one[0] != "wrong.py"] == []
    assert {line for _, line, _ in found} == wrong_lines(WRONG), found
