"""The plugins and examples on a whole Taskyard, as a person would use them: `taskyard up`, a configuration, and examples/client.py."""

from __future__ import annotations

import base64
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image
from standardwebhooks import Webhook as Receiver

from .conftest import Answer, Site

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
CONFIG = """
[plugins.http]
allow_private_networks = true
[plugins.webhook]
allow_private_networks = true
[plugins.process.commands.shout]
path = "{python}"
args = ["-I", "-c", "import sys; print(sys.argv[1].upper())"]
[plugins.thumbnails]
output_folder = "{folder}/thumbnails"
source_folders = ["{folder}/pictures"]
[[routes]]
name = "all to the hook"
notifier = "webhook"
events = ["task.succeeded", "task.failed"]
options = {{ url = "{hook}", secret = "{secret}" }}
[[routes]]
name = "all to the log"
notifier = "log"
events = ["task.succeeded"]
"""


@dataclass
class Yard:
    """A running Taskyard."""

    url: str
    folder: Path
    hook: Site
    environment: dict[str, str]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def client(self, type: str, payload: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "examples" / "client.py"), type, json.dumps(payload), "--server", self.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=self.environment)


def _run_up(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """`taskyard up` until the end of the test; yields its address once the banner says so."""
    command = [sys.executable, "-m", "taskyard", "up", "--port", "0", "--data-dir", str(folder / "data")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        while not (line := lines.get(timeout=60)).strip().startswith("API"):
            pass
        yield line.split()[1].removesuffix("/api/v1")
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stdout.close()


def _copy(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)


@pytest.fixture
def yard(short_tmp: Path, example_site: Path, serve_site: Callable[..., Site]) -> Iterator[Yard]:
    folder = short_tmp / f"live-{secrets.token_hex(3)}"
    (folder / "pictures").mkdir(parents=True)
    hook = serve_site({"/hook": Answer(204)})
    (folder / "taskyard.toml").write_text(CONFIG.format(python=sys.executable, folder=folder, hook=hook.url("/hook"), secret=SECRET))
    outside = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_") and name not in ("DATABASE_URL", "CELERY_BROKER_URL")}
    environment = {**outside, "TASKYARD_CONFIG": str(folder / "taskyard.toml"), "PYTHONPATH": str(example_site)}
    for url in _run_up(environment, folder):
        yield Yard(url, folder, hook, environment)


def test_the_examples_and_the_plugins_that_ship_work_together(yard: Yard, serve_site: Callable[..., Site]) -> None:
    Image.linear_gradient("L").resize((400, 200)).save(yard.folder / "pictures" / "a.png")
    made = yard.client("image.thumbnail", {"path": str(yard.folder / "pictures" / "a.png"), "width": 100, "height": 100})
    assert made.returncode == 0, made.stderr + yard.log()
    thumbnail = json.loads(made.stdout[made.stdout.index("{") :])
    with Image.open(thumbnail["path"]) as image:
        assert image.size == (100, 50)

    page = serve_site({"/": Answer(body=b"hello")})
    fetched = yard.client("http.request", {"url": page.url()})
    assert fetched.returncode == 0, fetched.stderr
    assert '"body": "hello"' in fetched.stdout

    shouted = yard.client("process.run", {"command": "shout", "args": ["$HOME is quiet"]})
    assert shouted.returncode == 0, shouted.stderr
    assert '"stdout": "$HOME IS QUIET\\n"' in shouted.stdout

    failed = yard.client("http.request", {"url": page.url("/none")})
    assert failed.returncode == 1
    assert '"code": "unexpected-status"' in failed.stdout

    refused = yard.client("http.requst", {})
    assert refused.returncode == 2
    assert "http.request" in refused.stderr

    _until(lambda: len(yard.hook.asked) >= 4)
    events = [Receiver(SECRET).verify(asked.body, asked.headers) for asked in yard.hook.asked]
    assert sorted(event["type"] for event in events) == ["task.failed", "task.succeeded", "task.succeeded", "task.succeeded"]
    assert len({asked.headers["webhook-id"] for asked in yard.hook.asked}) == 4
    _until(lambda: all(f"task_type={type}" in yard.log() for type in ("image.thumbnail", "http.request", "process.run")))
    assert "Traceback" not in yard.log()


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do; the test's own timeout ends it."""
    while not condition():
        threading.Event().wait(0.02)
