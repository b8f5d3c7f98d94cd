"""What plugins do when they are imported: it is told, with the line, or undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskyard.settings import PluginSettings
from taskyard.testing.fresh import problems_in_a_fresh_process
from tests.worker.one_child import zygote

POOL = """
from concurrent.futures import ThreadPoolExecutor
from taskyard import handler, hookimpl

POOL = ThreadPoolExecutor(1, thread_name_prefix="mine")
POOL.submit(int).result()

@handler("threads.use")
def use(payload: int) -> int:
    return payload

@hookimpl
def taskyard_handlers():
    return [use]
"""
LOGS = """
import logging, logging.config, structlog
from taskyard import Context, handler, hookimpl

logging.basicConfig(force=True, format="plain %(message)s")
logging.config.dictConfig({"version": 1})
structlog.configure(processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.PrintLoggerFactory())
logging.disable(logging.ERROR)

@handler("logs.say")
def say(payload: str, ctx: Context) -> None:
    ctx.log.info("kept", password=payload)
    logging.getLogger("by.stdlib").warning("to amqp://u:%s@h", payload)

@hookimpl
def taskyard_handlers():
    return [say]
"""


def plugin(folder: Path, name: str, source: str) -> Path:
    """A folder with an installed plugin."""
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[taskyard.plugins]\n{name} = {name}\n")
    return folder


def test_a_worker_names_the_plugin_the_thread_and_the_line_of_what_its_import_starts(tmp_path: Path) -> None:
    with zygote(tmp_path, plugin(tmp_path, "threads", POOL), "threads") as bed:
        told = [json.loads(line) for line in bed.log.read_text().splitlines()]
    [warning] = [line for line in told if line["event"] == "plugin.thread_at_import"]
    assert (warning["plugin"], warning["problem"]) == ("threads", f"its import starts the thread 'mine_0' at {tmp_path / 'threads.py'}:6")


def test_plugins_check_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plugin(tmp_path, "threads", POOL)))
    [problem] = problems_in_a_fresh_process("threads", {}, ["threads.use"], PluginSettings())
    assert problem.startswith(f"its import starts the thread 'mine_0' at {tmp_path / 'threads.py'}:6: it is dead in the processes that run handlers")


def test_what_an_import_does_to_logging_silences_and_unmasks_nobody(tmp_path: Path) -> None:
    with zygote(tmp_path, plugin(tmp_path, "logs", LOGS), "logs") as bed:
        ended = bed.fork().run("logs.say", "hunter2")
        written = [json.loads(line) for line in bed.log.read_text().splitlines()]
    assert [(line["message"], line["fields"]) for line in ended.lines] == [("kept", {"password": "***"})]
    assert [line["event"] for line in written] == ["plugin.changed_logging", "kept", "to amqp://u:***@h"]
    assert "hunter2" not in json.dumps(written)
