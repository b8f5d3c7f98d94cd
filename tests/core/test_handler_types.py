"""What type checkers know inside a handler: its configuration, and what it submits. `make check` holds the positive half."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type
from uuid import UUID

from pydantic import BaseModel

from taskyard import Context, Handler, handler

ROOT = Path(__file__).parents[2]


class Options(BaseModel):
    endpoint: str = "https://archive.example.com"


class Page(BaseModel):
    number: int


@handler("book.page")
async def page(payload: Page, ctx: Context[Options]) -> str:
    assert_type(ctx.config, Options)
    assert_type(ctx.submit(page, Page(number=1), priority=9, delay=timedelta(minutes=1), tags={"a"}, unique_key=None), UUID)
    return ctx.config.endpoint


@handler("book.pages", batch=10)
def pages(payloads: list[Page], contexts: list[Context[Options]]) -> list[str | Exception]:
    return [ctx.config.endpoint for ctx in contexts]


@handler("book.plain")
async def plain(payload: Page, ctx: Context) -> int:
    known: Options = ctx.config  # As code of before does.
    return len(ctx.config.endpoint + known.endpoint)


def test_a_handler_keeps_its_types_whatever_its_context_says() -> None:
    assert_type(page, Handler[Page, str])
    assert_type(pages, Handler[Page, str])
    assert_type(plain, Handler[Page, int])
    assert [made.wants_context for made in (page, pages, plain)] == [True, True, True]


def test_a_plain_context_is_one_of_any_configuration() -> None:
    ctx: Context = Context(task_id=UUID(int=0), type="x")
    given: Context[Any] = ctx
    assert (given.config, given.namespace, given.parent_id, given.max_attempts) == (None, "default", None, 1)


WRONG = f"""
from taskyard import Context
from {__name__.replace("tests.core.", "")} import Options, Page, page

def one(ctx: Context[Options]) -> None:
    ctx.config.endpiont
    ctx.submit(page, Options())
    ctx.submit(page, Page(number=1), prio=9)
    ctx.submit("book.page", {{"number": 1}}, priority="high")
    ctx.submit("book.page", {{"number": 1}}, priority=9)
    ctx.progres(0.5)
"""


def test_type_checkers_find_a_wrong_setting_payload_and_option(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\nmypy_path = {ROOT / 'core'}:{Path(__file__).parent}\nplugins = pydantic.mypy\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--follow-imports", "silent", "wrong.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error: " in line}
    assert found == {6, 7, 8, 9, 11}, run.stdout + run.stderr
