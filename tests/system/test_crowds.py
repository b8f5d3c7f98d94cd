"""A crowd at one web process: 2,000 live streams and 2,000 waiting requests, open at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from httpx2 import AsyncClient, TransportError
from sqlalchemy import Engine

from tests.api.conftest import submit
from tests.ground import free_port

pytestmark = pytest.mark.anyio
CROWD = 2_000
MIB = 1024 * 1024


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`taskyard serve` and its process."""
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskyard", "serve", "--port", str(port)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url},
            stdout=log,
            stderr=log,
        )
    yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    process.terminate()
    assert process.wait(60) == 0


class Caller:
    """One connection of the crowd: what it asked, and what it has heard so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def until(self, words: bytes) -> bytes:
        """Read on until these words have come."""
        return await asyncio.wait_for(self._reader.readuntil(words), 120)

    def close(self) -> None:
        self._writer.close()


async def call(url: str, path: str, headers: str = "") -> Caller:
    """Ask, and don't wait for the answer."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(f"GET /api/v1{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    return Caller(reader, writer)


@pytest.mark.timeout(300)
async def test_thousands_of_streams_and_waits_on_one_process_all_hear_of_an_end_in_little_memory(served: tuple[str, psutil.Process], engine: Engine) -> None:
    url, process = served
    async with AsyncClient(base_url=f"{url}/api/v1", timeout=60) as client:
        await until_up(client, url)
        task = await submit(client, "http.request", {"url": "https://example.com/"})
        streams = await crowd(url, "/events")
        for stream in streams:
            await stream.until(b"retry: 2000\n")
        waits = await crowd(url, f"/tasks/{task['id']}", "Prefer: wait=60\r\n")
        while await waiting(client, url) < len(waits):  # noqa: ASYNC110  # another process sets no event of ours
            await asyncio.sleep(0.05)
        memory = process.memory_info().rss
        assert (await client.post(f"/tasks/{task['id']}/cancel")).status_code == 200
        for stream in streams:
            await stream.until(b"event: task.cancelled\n")
        for wait in waits:
            answer = await wait.until(b'"version"')
            assert b" 200 OK" in answer
            assert b'"status":"cancelled"' in answer
        most = max(memory, process.memory_info().rss)
        assert most < 300 * MIB, f"{most / MIB:.0f} MiB"
        for caller in (*streams, *waits):
            caller.close()


async def crowd(url: str, path: str, headers: str = "") -> list[Caller]:
    """So many calls, a hundred connections at a time."""
    found: list[Caller] = []
    while len(found) < CROWD:
        found += await asyncio.gather(*(call(url, path, headers) for _ in range(100)))
    return found


async def until_up(client: AsyncClient, url: str) -> None:
    while True:
        with suppress(TransportError):
            if (await client.get(f"{url}/health/ready")).status_code == 200:
                return
        await asyncio.sleep(0.05)


async def waiting(client: AsyncClient, url: str) -> int:
    """How many requests wait for a task's end, by the process's own word."""
    lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("taskyard_requests_waiting "))
