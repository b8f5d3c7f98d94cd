"""Plugins that are broken in every way, in real processes: the service is up, and the log, the command and the API tell of each with its cause."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskyard.testing import NotStarted, RunningTaskyard, running_taskyard

FINE = "from taskyard import handler, hookimpl\n@handler('fine.work')\ndef work(payload: dict) -> int:\n    'Work.'\n    return 1\n"
HOOK = "@hookimpl\ndef taskyard_handlers():\n    return [work]\n"
#: By name: the source, what its distribution requires, and the cause that is told.
BROKEN = {
    "raising": ("raise RuntimeError('no licence')\n", "taskyard", "RuntimeError: no licence"),
    "exiting": ("raise SystemExit(3)\n", "taskyard", "SystemExit: 3"),
    "modelless": (
        "from collections.abc import Callable\nfrom pydantic import BaseModel\nfrom taskyard import handler, hookimpl\n"
        "class P(BaseModel):\n    call: Callable[[], int]\n@handler('odd.work')\ndef work(payload: P) -> int:\n    'Work.'\n    return 1\n" + HOOK,
        "taskyard",
        "handler 'odd.work': payload: no JSON Schema can be built",
    ),
    "early": ("from taskyard import what_is_not_there_yet\n", "taskyard>=99", "needs taskyard>=99, and this is 0.1.0. Upgrade Taskyard"),
    "hanging": (
        "import threading\nprint('begins')\nthreading.Event().wait()\n",
        "taskyard",
        r"It was not loaded within 3 s \(plugins.import_timeout\); it stood at .*threading.py:\d+, in wait",
    ),
}


def _install(folder: Path, name: str, source: str, requires: str) -> None:
    (folder / f"broken_{name}.py").write_text(source)
    info = folder / f"broken_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: broken-{name}\nVersion: 1.0\nRequires-Dist: {requires}\n")
    (info / "entry_points.txt").write_text(f"[taskyard.plugins]\n{name} = broken_{name}\n")


def _environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])), "TASKYARD_PLUGINS__IMPORT_TIMEOUT": "3"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, (source, requires, _) in BROKEN.items():
        _install(folder, name, source, requires)
    _install(folder, "fine", FINE + HOOK, "taskyard>=0.1")
    return folder


@pytest.fixture(scope="module")
def running(site: Path) -> Iterator[RunningTaskyard]:
    names = json.dumps([*BROKEN, "fine"])
    with running_taskyard(environment=_environment(site) | {"TASKYARD_PLUGINS__ONLY": names}, timeout=200) as started:
        yield started


@pytest.mark.timeout(300)
def test_the_service_is_up_and_does_what_the_others_bring(running: RunningTaskyard) -> None:
    task = running.run("fine.work", {})
    assert (task["status"], task["result"]) == ("succeeded", 1)


@pytest.mark.timeout(300)
def test_the_api_and_the_log_of_every_role_tell_of_each_with_its_cause(running: RunningTaskyard) -> None:
    told = {plugin["name"]: plugin for plugin in running.call("GET", "plugins")["items"]}
    assert told["fine"]["state"] == "enabled"
    for name, (_, _, cause) in BROKEN.items():
        assert told[name]["state"] == "failed"
        assert re.search(cause, told[name]["reason"]), told[name]["reason"]
        for role in ("web", "dispatcher", "worker"):
            lines = [line for line in running.log().splitlines() if line.startswith(role) and "plugin.failed" in line and name in line]
            assert lines, f"the log of {role} does not tell of {name}"


def test_the_command_tells_of_each_with_its_cause(site: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")} | _environment(site)
    listed = subprocess.run([sys.executable, "-m", "taskyard", "plugins", "list", "--json"], env=environment, cwd=site, capture_output=True, text=True)
    told = {plugin["name"]: plugin for plugin in json.loads(listed.stdout[listed.stdout.index("{") :])["items"]}
    for name, (_, _, cause) in BROKEN.items():
        assert told[name]["state"] == "failed"
        assert re.search(cause, told[name]["reason"]), told[name]["reason"]


@pytest.mark.timeout(300)
def test_two_that_claim_one_type_stop_the_start_and_are_both_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        _install(tmp_path, name, FINE + HOOK, "taskyard")
    with (
        pytest.raises(NotStarted, match=r"Two plugins claim the task type 'fine.work': 'first' \(broken-first\) and 'second' \(broken-second\)"),
        running_taskyard(environment=_environment(tmp_path), timeout=200),
    ):
        pass
