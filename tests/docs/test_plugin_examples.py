"""The plugins that the pages show work when they are copied."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

from taskyard import Context, DeliveryContext, Handler, Notifier, hookspecs
from taskyard.notifiers import check_notifier
from taskyard.plugins import load_plugins
from taskyard.testing import Answer, Receiver, make_event, run_batch, run_handler, run_notifier

from .markdown import ROOT, blocks

AUTHORS = ROOT / "docs" / "plugin-authors.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plugin of the README, and one of the guide's parts."""
    source, target = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("site")
    pyproject = blocks(ROOT / "README.md", "toml")[0]
    (source / "words.py").write_text(blocks(ROOT / "README.md", "python")[0])
    (source / "pyproject.toml").write_text(pyproject)
    _install(source, target)
    guide = tmp_path_factory.mktemp("guide")
    parts = [block for block in blocks(AUTHORS, "python") if "taskyard.testing" not in block]
    hook = "from taskyard import hookimpl\n\n\n@hookimpl\ndef taskyard_handlers():\n    return [make]\n"
    (guide / "guide.py").write_text("\n\n".join([*parts, hook]))
    (guide / "pyproject.toml").write_text(pyproject.replace("words", "guide"))
    _install(guide, target)
    return target


def _install(source: Path, target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(pip, check=True, capture_output=True)


def _run(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, "-m", *arguments], env=environment, cwd=cwd, capture_output=True, text=True)


def test_the_readmes_plugin_has_about_twenty_lines() -> None:
    assert len([line for line in blocks(ROOT / "README.md", "python")[0].splitlines() if line]) <= 20


@pytest.mark.parametrize("name", ["words", "guide"])
def test_the_plugins_that_the_pages_show_conform(installed: Path, tmp_path: Path, name: str) -> None:
    checked = _run(installed, "taskyard", "plugins", "check", name, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_readmes_plugin_is_found(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(_run(installed, "taskyard", "plugins", "list", "--json", cwd=tmp_path).stdout)["items"]
    assert [plugin["task_types"] for plugin in listed if plugin["name"] == "words"] == [["words.count"]]


# The one that starts a whole Taskyard runs in tests/system/test_first_plugin.py.
def test_the_tests_that_the_guide_shows_pass(installed: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(AUTHORS, "python")[-2:]):
        (tmp_path / f"test_words_{number}.py").write_text(block)
    run = _run(installed, "pytest", "-q", "-p", "no:cacheprovider", "-k", "not whole", str(tmp_path), cwd=tmp_path)
    assert "3 passed, 1 deselected" in run.stdout, run.stdout + run.stderr


def _number_of(text: str) -> int:
    """Which Python block of the guide has this text."""
    return next(number for number, block in enumerate(blocks(AUTHORS, "python")) if text in block)


def _module(tmp_path: Path, number: int) -> ModuleType:
    """A Python block of the guide, imported."""
    path = tmp_path / f"guide_{number}.py"
    path.write_text(blocks(AUTHORS, "python")[number])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guides_handler_ends_as_it_says(tmp_path: Path) -> None:
    make: Handler[object, object] = _module(tmp_path, 0).make
    done = run_handler(make, {"month": "2026-01"})
    assert (done.status, done.result, len(done.progress)) == ("succeeded", {"pages": 10}, 10)
    assert run_handler(make, {"month": "2019-12"}).code == "too-early"
    later = run_handler(make, {"month": "2026-01"}, attempt=4)
    assert (later.status, later.delay) == ("scheduled", 3600)


def test_the_guides_configuration_is_a_model(tmp_path: Path) -> None:
    module = _module(tmp_path, 1)
    assert module.taskyard_config()().endpoint


def test_the_guides_shop_shares_a_client_and_an_engine(tmp_path: Path, taskyard_receiver: Receiver) -> None:
    module = _module(tmp_path, _number_of("class ShopConfig"))
    with sqlite3.connect(tmp_path / "stock.db") as database:
        database.executescript("CREATE TABLE stock (sku text); INSERT INTO stock VALUES ('a'), ('a'), ('b')")
    database.close()
    config = module.ShopConfig(url=taskyard_receiver.url, database=f"sqlite:///{tmp_path / 'stock.db'}")
    taskyard_receiver.answer(Answer(200, b'{"price": "3.5"}'))
    assert run_handler(module.price, {"sku": "a"}, config=config).result == 3.5
    assert taskyard_receiver.requests[0].path == "/items/a"
    assert run_handler(module.in_stock, {"sku": "a"}, config=config).result == 2

    class Fake:
        async def get(self, url: str) -> httpx2.Response:
            return httpx2.Response(200, json={"price": 1}, request=httpx2.Request("GET", url))

    assert run_handler(module.price, {"sku": "a"}, resources={httpx2.AsyncClient: Fake()}).result == 1


def test_the_guides_notifier_sends(tmp_path: Path) -> None:
    (file,) = _module(tmp_path, _number_of("class FileOptions")).taskyard_notifiers()
    assert isinstance(check_notifier(file), Notifier)
    run = run_notifier(file, {"path": str(tmp_path / "events")}, make_event("task.failed"))
    assert (run.status, run.detail) == ("delivered", "written")
    assert "task.failed" in (tmp_path / "events").read_text()


def test_the_guides_album_asks_for_further_tasks(tmp_path: Path) -> None:
    run = run_handler(_module(tmp_path, _number_of("def publish")).publish, {"pictures": ["a.png", "b.png"]}, other_types=["image.thumbnail", "letters.send"])
    assert [child.type for child in run.submissions] == ["image.thumbnail", "image.thumbnail", "letters.send"]
    assert run.result == [str(child.id) for child in run.submissions[:2]]


def test_the_guides_batch_handler_answers_for_each(tmp_path: Path) -> None:
    store: Handler[object, object] = _module(tmp_path, _number_of("def store(")).store
    ann, eve, bob = run_batch(store, [{"to": "ann"}, {"to": "eve"}, {"to": "bob"}], cancelled=[2])
    assert (ann.result, eve.code, bob.status) == ({"row": 1}, "nobody", "cancelled")


def test_the_guides_next_version_reads_what_the_first_one_stored(tmp_path: Path) -> None:
    send: Handler[object, object] = _module(tmp_path, _number_of("def send_letter")).send_letter
    assert send.names == ("letters.send", "mail.send")
    assert run_handler(send, {"to": "ann"}, stored=True).result == 1
    assert run_handler(send, {"too": "ann"}, stored=True).code == "upgrade-failed"


def test_the_guides_templates_make_a_message(tmp_path: Path) -> None:
    options = _module(tmp_path, _number_of("class ChatOptions")).ChatOptions()
    event, ctx = make_event("task.failed", data={"error": {"code": "time_out"}}), DeliveryContext("dlv_1", "chat")
    assert options.title.render(event, ctx) == "task.failed: test.task"
    assert options.body.render(event, ctx) == "**error.code** time\\_out\n"


def test_the_guide_names_what_a_context_has() -> None:
    text = AUTHORS.read_text()
    public = {name for name in dir(Context) if not name.startswith("_")} - {"cancel", "reporter", "submissions", "type"}
    assert [name for name in sorted(public) if f"`{name}" not in text and f"ctx.{name}" not in text] == []


# --- the hooks' reference: its examples are one plugin ---


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin that the reference's examples make."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "archive_plugin.py").write_text("\n\n".join(blocks(ROOT / "docs" / "reference" / "hooks.md", "python")))
    info = folder / "archive-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: archive\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
    (info / "entry_points.txt").write_text("[taskyard.plugins]\narchive = archive_plugin\n")
    return folder


def test_there_is_an_example_for_each_hook() -> None:
    specified = [name for name in vars(hookspecs) if name.startswith("taskyard_")]
    shown = re.findall(r"^@hookimpl\n(?:async )?def (\w+)", "\n".join(blocks(ROOT / "docs" / "reference" / "hooks.md", "python")), re.MULTILINE)
    assert shown == specified


def test_the_examples_of_the_hooks_work(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(archive)
    registry = load_plugins(only=["archive"], options={"archive": {"token": "t"}})
    (plugin,) = [plugin for plugin in registry.plugins if plugin.state != "disabled"]
    assert plugin.state == "enabled", plugin.reason
    run = run_handler(registry.handler("archive.store"), {"a": 1}, config=plugin.config)
    assert run.result == "https://archive.example.com/1"
    shelf = registry.notifiers["archive-shelf"]
    assert run_notifier(shelf, {"shelf": "top"}, run.events[-1]).detail == "https://archive.example.com/top/task.succeeded"
    assert run_notifier(shelf, {"shelf": "full"}).status == "dead"
    for event in run.events:
        registry.hook.taskyard_task_event(event=event)
    assert plugin.exposes == "archive.store writes to https://archive.example.com"
    assert sys.modules["archive_plugin"].seen == {"task.started": 1, "task.succeeded": 1}
    assert list(load_plugins(only=["archive"]).handlers) == []


def test_the_plugin_of_the_hooks_examples_conforms(archive: Path, tmp_path: Path) -> None:
    checked = _run(archive, "taskyard", "plugins", "check", "archive", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
