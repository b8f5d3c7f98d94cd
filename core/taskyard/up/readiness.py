"""When is everything up, and what can a newcomer paste?"""

from __future__ import annotations

import asyncio
import http.client
import json
import shlex
import urllib.error
from collections.abc import Callable
from typing import Any

import psycopg

from taskyard.database import APPLICATION, connect, database_url
from taskyard.database_errors import outages_named
from taskyard.network import open_directly
from taskyard.settings import DatabaseSettings

_LOOK_EVERY = 0.05
_SEEN = """
SELECT (SELECT count(*) FROM workers WHERE started_at >= %(since)s),
       (SELECT count(*) FROM pg_stat_activity WHERE application_name = %(dispatcher)s AND datname = current_database())
"""


def clock(settings: DatabaseSettings) -> Any:
    """The database's time now."""
    with outages_named(at=database_url(settings)), connect(settings, role="up") as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0]


async def until_ready(url: str, settings: DatabaseSettings, *, since: Any, workers: int) -> None:
    """Wait until the service answers, a dispatcher is connected and the workers have registered ``since`` a database time."""
    await _until(_get, f"{url}/health/ready")
    await _until(_registered, settings, since, workers)


async def _until(look: Callable[..., Any], *arguments: Any) -> None:
    while not await asyncio.to_thread(look, *arguments):  # noqa: ASYNC110  # other processes set no event of ours
        await asyncio.sleep(_LOOK_EVERY)


async def first_task(url: str) -> str | None:
    """A curl line that submits a task of an installed type, if one tells of a payload by itself (no field required, or an example)."""
    found = await asyncio.to_thread(_get, f"{url}/api/v1/task-types")
    for entry in (found or {}).get("items", []):
        payload = example(entry.get("payload_schema") or entry.get("payload") or {})
        if payload is not None:
            body = json.dumps({"type": entry["type"], "payload": payload})
            return f"curl -s {url}/api/v1/tasks -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return None


def example(schema: dict[str, Any]) -> Any:
    """A payload that the schema itself tells of; None if it tells of none."""
    if schema.get("examples"):
        return schema["examples"][0]
    properties = schema.get("properties", {})
    needed = {name: properties.get(name, {}).get("examples") for name in schema.get("required", [])}
    return {name: examples[0] for name, examples in needed.items() if examples} if all(needed.values()) else None


def _get(url: str) -> Any:
    """The JSON at a URL; None when it can't be had."""
    try:
        with open_directly(url, timeout=5) as answer:
            return json.load(answer)
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError):
        return None


def _registered(settings: DatabaseSettings, since: Any, workers: int) -> bool:
    try:
        with connect(settings, role="up") as connection:
            row = connection.execute(_SEEN, {"since": since, "dispatcher": f"{APPLICATION}-dispatcher"}).fetchone()
    except psycopg.Error:
        return False
    return row is not None and row[0] >= workers and row[1] > 0
