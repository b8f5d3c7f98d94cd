"""Schemathesis against a running service: no 5xx, no answer that the document does not have, no bad input that is taken."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url

from taskyard import keys
from taskyard.plugins import load_plugins_for
from taskyard.routes import sync_routes
from taskyard.settings import AuthSettings, DatabaseSettings, Route, Settings
from taskyard_api import access, prefer
from taskyard_api.app import create_app
from taskyard_api.command import server_of
from taskyard_api.live import Feed
from tests.databases import cloned

HERE = Path(__file__).parent
#: For each operation, in each phase that makes them up.
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "200")


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The address of a service with the plugins that are installed, on uvicorn."""
    server = server_of(create_app(settings, load_plugins_for(settings)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def settings_of(url: str, **more: Any) -> Settings:
    route = Route(name="all ends", notifier="log", events=("task.submitted", "task.cancelled"))
    return Settings(database=DatabaseSettings(url=SecretStr(url)), routes=(route,), auth=AuthSettings(mode="keys"), **more)


def prepare(url: str, settings: Settings) -> str:
    """A key that may do all."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        sync_routes(connection, settings.routes)
        key = keys.create(connection, "schemathesis", scopes=("tasks:read", "tasks:write", "admin")).secret
    engine.dispose()
    return key


STREAM = Feed.stream


async def cut(self: Feed, asked: Any) -> AsyncIterator[bytes]:
    """A live stream that ends when nothing has come for a moment: a real one has no end that a test could wait for."""
    stream = STREAM(self, asked)
    assert isinstance(stream, AsyncGenerator)
    try:
        while True:
            yield await asyncio.wait_for(anext(stream), 0.05)
    except (StopAsyncIteration, TimeoutError):
        return
    finally:
        await stream.aclose()


@pytest.mark.one_pair
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phases", ["examples,coverage", "fuzzing", "stateful"])
def test_whatever_the_document_lets_be_sent_is_answered_as_it_says(
    phases: str, postgres_url: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No worker ends a task here, so that a wait would be for nothing; and a wrong key is one of the things that are tried, thousands of times.
    monkeypatch.setattr(prefer, "MAX_WAIT", 0)
    monkeypatch.setattr(access, "BURST", 1e9)
    monkeypatch.setattr(Feed, "stream", cut)
    with cloned(postgres_url, template) as url:
        settings = settings_of(url)
        key = prepare(url, settings)
        with running(settings) as address:
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {key}", "--phases", phases, "--checks", "all"),
                *("--max-examples", EXAMPLES),
            ]
            with (tmp_path / "said").open("w") as said:
                ran = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE)}, stdout=said, stderr=said, timeout=850)
        assert ran.returncode == 0, (tmp_path / "said").read_text()[-20_000:]
