"""`taskyard up --reload`: a changed plugin answers with its new code, and no task is lost on the way."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from taskyard.errors import TaskyardError
from taskyard.settings import PluginSettings
from taskyard.up.reload import Sources, watched_sources
from tests.stack import until
from tests.system.test_up import Up

PATIENCE = 200.0
SOURCE = """
import asyncio
from taskyard import Retry, handler, hookimpl

@handler("live.which")
async def which(payload: float) -> int:
    'Sleep, and tell which code this is.'
    await asyncio.sleep(payload)
    return VERSION

@hookimpl
def taskyard_handlers():
    return [which]
"""


class Live:
    """A plugin in a folder of its own, as `pip install -e` leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "site"
        info = self.folder / "live-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: live\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
        (info / "entry_points.txt").write_text("[taskyard.plugins]\nlive = live_plugin\n")
        self.write("VERSION = 1" + SOURCE)

    def write(self, text: str) -> None:
        """Put another file in its place, as editors do."""
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.replace(self.folder / "live_plugin.py")


@pytest.fixture
def live() -> Iterator[tuple[Live, Up]]:
    with tempfile.TemporaryDirectory(prefix="ty-up-", dir="/tmp", ignore_cleanup_errors=True) as made:
        plugin = Live(Path(made))
        path = os.pathsep.join(filter(None, [str(plugin.folder), os.environ.get("PYTHONPATH")]))
        up = Up(Path(made), "--reload", PYTHONPATH=path, TASKYARD_PLUGINS__ONLY='["live"]')
        try:
            yield plugin, up.until_ready()
        finally:
            up.stop(signal.SIGTERM)
            up.left()


def _submit(up: Up, seconds: float) -> str:
    """A task's id; nothing while the service is on its way down or up."""
    try:
        answer = httpx2.post(f"{up.url}/api/v1/tasks", json={"type": "live.which", "payload": seconds})
        return str(answer.json()["id"]) if answer.status_code == 201 else ""
    except httpx2.HTTPError:
        return ""


def _ended(up: Up, task: str) -> dict[str, object] | None:
    try:
        found: dict[str, object] = httpx2.get(f"{up.url}/api/v1/tasks/{task}").json()
    except (httpx2.HTTPError, ValueError):
        return None
    return found if found.get("finished_at") else None


def _end(up: Up, task: str) -> dict[str, object]:
    found: dict[str, object] = until(lambda: _ended(up, task), PATIENCE, f"the end of {task}: {up.said()}")
    return found


@pytest.mark.timeout(400)
def test_the_new_code_answers_and_no_task_is_lost(live: tuple[Live, Up]) -> None:
    plugin, up = live
    tasks = [until(lambda: _submit(up, 2.0), PATIENCE) for _ in range(30)]
    plugin.write("VERSION = 2" + SOURCE)
    up.until_said("live_plugin.py changed; restarting the roles")
    results: list[object] = []
    while 2 not in results[-1:]:
        tasks.append(until(lambda: _submit(up, 0.0), PATIENCE))
        results.append(_end(up, tasks[-1])["result"])
    ends = [_end(up, task) for task in tasks]
    assert {end["status"] for end in ends} == {"succeeded"}
    assert {end["result"] for end in ends} == {1, 2}
    until(lambda: "ready again, with the new code" in up.said(), PATIENCE, up.said())

    plugin.write("VERSION = 3 +" + SOURCE)
    until(lambda: _state(up) == "failed", PATIENCE, up.said())
    plugin.write("VERSION = 4" + SOURCE)
    until(lambda: _state(up) == "enabled", PATIENCE, up.said())
    assert _end(up, until(lambda: _submit(up, 0.0), PATIENCE))["result"] == 4


def _state(up: Up) -> str:
    try:
        return next(str(plugin["state"]) for plugin in httpx2.get(f"{up.url}/api/v1/plugins").json()["items"] if plugin["name"] == "live")
    except (httpx2.HTTPError, ValueError, LookupError):
        return ""


def test_only_sources_of_enabled_plugins_are_watched_and_not_what_editors_put_beside_them() -> None:
    sources = watched_sources(PluginSettings(only=("demo", "process")))
    assert [path.name for path in sources.modules] == ["taskyard_demo.py"]
    assert [path.name for path in sources.packages] == ["taskyard_process"]
    package = Sources(packages=(Path("/a/b"),), modules=(Path("/c/d.py"),))
    wanted = ["/a/b/e.py", "/a/b/f/query.sql", "/c/d.py"]
    others = ["/a/x.py", "/c/e.py", "/a/b/__pycache__/e.cpython-311.pyc", "/a/b/.e.py.swp", "/a/b/e.py~"]
    assert [path for path in [*wanted, *others] if package.has(Path(path))] == wanted


def test_nothing_to_watch_is_told() -> None:
    with pytest.raises(TaskyardError, match="nothing to watch"):
        watched_sources(PluginSettings(only=()))
