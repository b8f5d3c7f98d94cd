"""A plugin that fails to load says where: the file and the line in its own code, however deep, with a traceback of its own frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import importlib_metadata
import pytest
from pydantic import SecretStr

from taskyard.plugins import GROUP, Plugin, load_each
from taskyard.testing import check_plugin

NAME = "placed"
MODULE = "placed_plugin"
IMPORTS = "from pydantic import BaseModel, SecretStr, field_validator\nfrom taskyard import handler, hookimpl\n"
HANDLER = "@handler('placed.work', aliases=['placed.old'])\ndef work(payload: dict) -> int:\n    'Work.'\n    return 1\n"
HOOK = "@hookimpl\ndef taskyard_handlers():\n    return [work]\n"

Install = Callable[..., Plugin]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plugin of these files, and load it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def installed(options: dict[str, object] | None = None, value: str = f"{MODULE}.main", **files: str | bytes) -> Plugin:
        package = tmp_path / MODULE
        package.mkdir()
        for name, source in {"__init__": "", **files}.items():
            (package / f"{name}.py").write_bytes(source if isinstance(source, bytes) else source.encode())
        info = tmp_path / f"{NAME}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {value}\n")
        entries = [entry for entry in importlib_metadata.entry_points(group=GROUP) if entry.name == NAME]
        [plugin], _ = load_each(options={NAME: options or {}}, entry_points=entries)
        return plugin

    yield installed
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULE]:
        del sys.modules[name]


BROKEN: list[tuple[str, dict[str, str | bytes], str, str]] = [
    ("deep", {"main": "from placed_plugin import helper\n", "helper": "A = 1\nVALUE = {}['missing']\n"}, "KeyError: 'missing'", "helper.py:2, in <module>"),
    ("no such name", {"main": "import placed_plugin.helper\n", "helper": "\nfrom json import nothing\n"}, "cannot import name 'nothing'", "helper.py:2"),
    ("no such module", {"main": IMPORTS + "import nowhere_at_all\n"}, "No module named 'nowhere_at_all'", "main.py:3"),
    ("half written", {"main": IMPORTS + HANDLER + HOOK + "def more(\n"}, "SyntaxError: '(' was never closed", "main.py:10"),
    ("indented", {"main": "from placed_plugin import helper\n", "helper": "def f():\nreturn 1\n"}, "IndentationError", "helper.py:2"),
    ("no text", {"main": "from placed_plugin import helper\n", "helper": b"A = 1\nB = '\xff'\n"}, "codec can't decode", "helper.py:2"),
    ("zeros", {"main": "from placed_plugin import helper\n", "helper": b"A = 1\n\0\0\n"}, "null bytes", "main.py:1"),
    (
        "caught",
        {"main": "try:\n    import nowhere_at_all\nexcept ImportError as error:\n    raise RuntimeError('no engine') from error\n"},
        "no engine",
        "main.py:4",
    ),
    ("exit", {"main": "\nraise SystemExit(3)\n"}, "SystemExit: 3", "main.py:2"),
    ("group", {"main": "def f():\n    raise ExceptionGroup('two', [OSError('a'), OSError('b')])\nf()\n"}, "ExceptionGroup: two", "main.py:2, in f"),
    ("declared wrongly", {"main": IMPORTS + "@handler('Not A Type')\ndef work(payload: dict) -> int:\n    return 1\n"}, "InvalidHandler", "main.py:3"),
    ("annotation", {"main": IMPORTS + "@handler('placed.work')\ndef work(payload: 'Missing') -> int:\n    return 1\n"}, "annotation 'Missing'", "main.py:3"),
    ("half annotation", {"main": IMPORTS + "@handler('placed.work')\ndef work(payload: 'list[') -> int:\n    return 1\n"}, "'placed.work'", "main.py:3"),
    ("hook", {"main": IMPORTS + "@hookimpl\ndef taskyard_handlers():\n    return [1 / 0]\n"}, "ZeroDivisionError", "main.py:5, in taskyard_handlers"),
    ("no list", {"main": IMPORTS + HANDLER + "@hookimpl\ndef taskyard_handlers():\n    return work\n"}, "expected a list", "main.py:7, in taskyard_handlers"),
    ("no handler", {"main": IMPORTS + "def work(payload):\n    return 1\n" + HOOK}, "expected functions declared with @handler", "main.py:3, in work"),
    ("no model", {"main": IMPORTS + "@hookimpl\ndef taskyard_config():\n    return 5\n"}, "expected a Pydantic model", "main.py:3, in taskyard_config"),
    ("odd model", {"main": IMPORTS + "class C(BaseModel):\n    a: 'Gone'\n@hookimpl\ndef taskyard_config():\n    return C\n"}, "not fully defined", "main.py"),
    (
        "validator",
        {
            "main": IMPORTS
            + "class C(BaseModel):\n    a: int = 1\n    @field_validator('a')\n    def check(cls, a):\n        return {}[a]\n"
            + "    model_config = {'validate_default': True}\n@hookimpl\ndef taskyard_config():\n    return C\n"
        },
        "KeyError: 1",
        "main.py:7, in check",
    ),
    ("twice", {"main": IMPORTS + HANDLER + HOOK.replace("[work]", "[work, work]")}, "more than once", "main.py:3, in work"),
    ("unknown hook", {"main": IMPORTS + HANDLER + HOOK.replace("handlers", "handelrs")}, "unknown hook", "main.py:7, in taskyard_handelrs"),
    ("wrong argument", {"main": IMPORTS + HANDLER + HOOK.replace("()", "(confg)")}, "confg", "main.py:7, in taskyard_handlers"),
]


@pytest.mark.parametrize(("files", "reason", "where"), [pytest.param(*case, id=name) for name, *case in BROKEN])
def test_each_failure_names_its_file_and_line(install: Install, files: dict[str, str | bytes], reason: str, where: str) -> None:
    plugin = install(**files)
    assert plugin.state == "failed"
    assert reason in str(plugin.reason)
    assert f"{MODULE}/{where}" in str(plugin.where)
    assert str(plugin.where) in str(plugin.failure)


def test_the_traceback_has_the_plugins_frames_and_none_of_the_hosts(install: Install) -> None:
    plugin = install(**BROKEN[0][1])
    trace = str(plugin.traceback)
    assert "from placed_plugin import helper" in trace
    assert "VALUE = {}['missing']" in trace
    assert "taskyard/plugins.py" not in trace


def test_a_module_that_is_not_there_is_told_with_the_entry_point(install: Install) -> None:
    plugin = install(value="placed_plugin.gone")
    assert plugin.reason == "ModuleNotFoundError: No module named 'placed_plugin.gone'"
    assert plugin.where == "the entry point placed = placed_plugin.gone"


def test_a_setting_that_is_wrong_is_told_by_its_name_alone(install: Install) -> None:
    plugin = install({"size": "large"}, main=IMPORTS + "class C(BaseModel):\n    size: int = 1\n@hookimpl\ndef taskyard_config():\n    return C\n")
    assert "plugins.placed.size" in str(plugin.failure)
    assert plugin.where is None


def test_secrets_of_its_configuration_are_masked(install: Install) -> None:
    source = "class C(BaseModel):\n    gate: SecretStr\n@hookimpl\ndef taskyard_config():\n    return C\n@hookimpl\ndef taskyard_handlers(config):\n"
    plugin = install({"gate": SecretStr("sesame-and-poppy")}, main=IMPORTS + source + "    raise OSError(f'refused: {config.gate.get_secret_value()}')\n")
    told = f"{plugin.failure} {plugin.traceback}"
    assert "refused: ***" in told
    assert "sesame" not in told


def test_the_types_that_its_source_declares_are_known(install: Install) -> None:
    assert install(main=IMPORTS + HANDLER + HOOK + "def more(\n").types == ("placed.old", "placed.work")


def test_the_check_tells_the_place_and_the_traceback(install: Install) -> None:
    install(**BROKEN[0][1])
    [problem] = check_plugin(NAME)
    assert "KeyError: 'missing'" in problem.splitlines()[0]
    assert "helper.py:2" in problem.splitlines()[0]
    assert "VALUE = {}['missing']" in problem


@pytest.mark.parametrize("names", ["'demo.echo'", "'placed.work', aliases=['demo.sleep']"])
def test_the_check_finds_a_task_type_that_another_plugin_has(install: Install, names: str) -> None:
    plugin = install(main=IMPORTS + HANDLER.replace("'placed.work', aliases=['placed.old']", names) + HOOK)
    assert plugin.state == "enabled"
    [problem] = check_plugin(NAME)
    assert "'demo' (taskyard-demo)" in problem
    assert "taskyard_demo.py:" in problem


def test_the_check_finds_a_notifier_that_another_plugin_has(install: Install) -> None:
    source = (
        "class Options(BaseModel):\n    pass\nclass Shout:\n    'Shout.'\n    name = 'log'\n    Options = Options\n"
        "    def send(self, event, options, ctx):\n        pass\n@hookimpl\ndef taskyard_notifiers():\n    return [Shout]\n"
    )
    install(main=IMPORTS + source)
    [problem] = check_plugin(NAME)
    assert "the notifier 'log': 'placed' (placed) and 'log' (taskyard-log)" in problem
