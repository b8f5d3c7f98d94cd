"""`taskyard up --reload`: a changed plugin answers with its new code, and no task is lost on the way."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
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
        up = Up(Path(made), "--reload", PYTHONPATH=path, TASKYARD_PLUGINS__ONLY='["demo", "live", "log"]')
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


@pytest.mark.timeout(900)
def test_no_save_takes_the_service_down_and_the_next_good_one_heals(live: tuple[Live, Up]) -> None:
    plugin, up = live
    module, metadata, toml = plugin.folder / "live_plugin.py", plugin.folder / "live-1.0.dist-info" / "METADATA", up.folder / "taskyard.toml"
    whole = metadata.read_text()

    def refused(break_it: Callable[[], object], told: str) -> None:
        """No role would start with it: the old code runs on, in the same processes."""
        before, said = up.child("taskyard serve").pid, len(up.said())
        break_it()
        until(lambda: "so the old code runs on" in up.said()[said:] and told in up.said()[said:], PATIENCE, f"{told}: {up.said()}")
        assert up.child("taskyard serve").pid == before
        assert _result(up) in range(1, 10)

    def failed(break_it: Callable[[], object], told: str) -> None:
        """The plugin is marked as failed, and all else is there."""
        said = len(up.said())
        break_it()
        until(lambda: _state(up) == "failed", PATIENCE, up.said())
        assert re.search(told, up.said()[said:]), up.said()

    def healed(version: int, mend: Callable[[], object] = lambda: None) -> None:
        mend()
        plugin.write(f"VERSION = {version}" + SOURCE)
        until(lambda: _state(up) == "enabled" and _result(up) == version, PATIENCE, up.said())

    refused(lambda: plugin.write("VERSION = 1" + SOURCE.replace("live.which", "demo.echo")), "Two plugins claim the task type 'demo.echo'")
    refused(lambda: plugin.write("import os; os._exit(3)"), "The process that loaded it ended with status 3")
    healed(2)
    failed(lambda: plugin.write("VERSION = 3 +" + SOURCE), r"live has failed: SyntaxError: .*live_plugin.py:1")
    healed(3)
    failed(module.unlink, r"live has failed: ModuleNotFoundError")
    healed(4)
    failed(lambda: plugin.write("from live_helpers import gone" + SOURCE), r"No module named 'live_helpers', at .*live_plugin.py:1")
    healed(5)
    refused(lambda: toml.write_text("[plugins.live\n"), "not valid TOML")
    refused(lambda: toml.write_text("[[routes]]\nname = 'a'\nnotifier = 'lgo'\nevents = ['task.failed']\n"), "Did you mean 'log'?")
    healed(6, toml.unlink)
    metadata.write_text("")
    plugin.write("VERSION = 7" + SOURCE)
    until(lambda: _state(up) == "failed", PATIENCE, up.said())
    healed(8, lambda: metadata.write_text(whole))


def _result(up: Up) -> object:
    return _end(up, until(lambda: _submit(up, 0.0), PATIENCE))["result"]


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
