"""Clients that generators make of the OpenAPI document: the commands and programs of docs/clients.md, run as they stand there, and odder task types."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from taskyard.plugins import Plugin, Registry
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from tests.client_tools import TOOLS, install_client_tools
from tests.docs.markdown import ROOT
from tests.taskyard_up import taskyard_up

from .conftest import hooks
from .odd_types import with_odd_types

HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "clients.md"
SHOWN = "http://127.0.0.1:8000"
#: A Java that is gone in five seconds needs no second compiler.
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx512m"
Run = Callable[..., str]


@dataclass(frozen=True)
class Example:
    """How the page makes one client, and a program that uses it."""

    commands: Sequence[str]
    file: str
    program: str


def examples() -> Iterator[Example]:
    """Those of the page: a block of commands, then a program that starts with its name."""
    text = PAGE.read_text().partition("\n## In other languages\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```$(?:\s+^```(?:ts|python)\n(?://|#) (\S+)\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)
    for commands, file, program in found:
        yield Example(commands.splitlines(), file, program)


EXAMPLES = {example.file: example for example in examples()}


@pytest.fixture(scope="module")
def tools() -> dict[str, str]:
    """An environment in which the generators, Java and Node.js are found."""
    install_client_tools()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "NODE_"))}
    return kept | {"PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}", "JDK_JAVA_OPTIONS": JAVA}


@pytest.fixture
def folder(tools: dict[str, str], tmp_path: Path) -> Path:
    """A project of somebody who has installed what the page says."""
    (tmp_path / "package.json").write_text((HERE / "package.json").read_text())
    (tmp_path / "node_modules").symlink_to(TOOLS / "node" / "node_modules")
    return tmp_path


@pytest.fixture
def run(tools: dict[str, str], folder: Path) -> Run:
    """Runs a command in the project; answers what it wrote. It fails if the command does, or does not where ``fails`` says that it should."""

    def running(command: str | Sequence[object], *, fails: bool = False) -> str:
        words = ["bash", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        environment = tools | {"PYTHONPATH": f"{folder}:{folder / 'taskyard-python'}"}
        ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert (ran.returncode != 0) == fails, f"{command}: {ran.stdout[-5000:]}{ran.stderr[-5000:]}"
        return ran.stdout + ran.stderr

    return running


@pytest.fixture(scope="module")
def service(short_tmp: Path) -> Iterator[str]:
    with taskyard_up(short_tmp / "clients") as address:
        yield address


def installs(command: str) -> bool:
    """What the page has a stranger install is here already, in the versions that tests/api pins."""
    if command.startswith("pip install ./"):
        return True
    if not command.startswith("npm install"):
        return False
    pinned = json.loads((HERE / "package.json").read_text())["dependencies"]
    assert {re.sub(r"(?<=.)@\d+$", "", word) for word in command.split()[2:]} <= pinned.keys(), command
    return True


def checks_types(command: str) -> bool:
    return command.startswith("npx tsc")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", [file for file in EXAMPLES if file])
def test_a_generated_client_submits_and_reads_a_typed_result(file: str, service: str, run: Run, folder: Path) -> None:
    example = EXAMPLES[file]
    program = folder / file
    program.write_text(example.program.replace(SHOWN, service))
    said = [run(command.replace(SHOWN, service)) for command in example.commands if not installs(command)]
    assert re.match(r"[0-9a-f-]{36} succeeded hello\n", said[-1]), said[-1]
    if file in ("fetch.ts", "client.py"):
        assert "There is no task" in said[-1], "a problem is read, too"
    wrong = re.sub(r"\btext(?=[:=] ?\"hello\")", "txt", program.read_text())
    assert wrong != program.read_text()
    if file.endswith(".ts"):
        program.write_text(wrong)
        [check] = filter(checks_types, example.commands)
        assert "'txt'" in run(check, fails=True)
        return
    assert "Success" in check_types(run, folder, file)
    program.write_text(wrong)
    assert '"txt"' in check_types(run, folder, file, fails=True)


def check_types(run: Run, folder: Path, file: str, *, fails: bool = False) -> str:
    """mypy of a program. What the generator wrote is checked by its own users: here it gives types."""
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-taskyard_client.*,taskyard_generated.*]\nignore_errors = true\n")
    return run([sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", TOOLS / "bin" / "python", file], fails=fails)


def document(registry: Registry) -> dict[str, Any]:
    settings = Settings(database=DatabaseSettings(url=SecretStr("postgresql://x/y")))
    return create_app(settings, registry).openapi()


def only(count: int, registry: Registry) -> Registry:
    """A service with that many task types."""
    plugin = registry.plugins[0]
    return Registry([Plugin("few", "taskyard-few", "1.0", handlers=[each.owned_by("few") for each in plugin.handlers[:count]])], hooks())


#: (document, generator): those of a service without task types, with one, and with odd ones.
GENERATED = [("odd", name) for name in ("typescript-fetch", "typescript-axios", "python", "go", "java")] + [
    (few, name) for few in ("none", "one") for name in ("typescript-fetch", "python")
]
#: Reads answers as the Python client does, and says which schema it took each for.
READ = """
import json, pkgutil, importlib
import odd_python, none_python, one_python
from odd_python.models import TaskAnswer
for client in (odd_python, none_python, one_python):
    for module in pkgutil.walk_packages(client.__path__, client.__name__ + "."):
        importlib.import_module(module.name)
print([type(TaskAnswer.from_dict(answer).actual_instance).__name__ for answer in json.load(open("answers.json"))])
"""

READ_ALL = """
import pkgutil, importlib, odd_client
for module in pkgutil.walk_packages(odd_client.__path__, "odd_client."):
    importlib.import_module(module.name)
"""


@pytest.mark.timeout(600)
def test_clients_of_services_with_odd_task_types_one_type_and_none_are_whole(registry: Registry, run: Run, folder: Path) -> None:
    for name, served in {"odd": with_odd_types(registry), "one": only(1, registry), "none": only(0, registry)}.items():
        (folder / f"{name}.json").write_text(json.dumps(document(served)))
        run(["npx", "openapi-typescript", f"{name}.json", "-o", f"{name}.d.ts"])
    for name, generator in GENERATED:
        options = {"importFileExtension": ".js"} if generator.startswith("typescript") else {"packageName": f"{name}_{generator}"}
        config = {"inputSpec": str(folder / f"{name}.json"), "generatorName": generator, "outputDir": str(folder / f"{name}-{generator}")}
        (folder / f"{name}-{generator}.config.json").write_text(json.dumps(config | {"additionalProperties": options}))
    said = run(["openapi-generator-cli", "batch", "--threads", "2", "--fail-fast", *(f"{name}-{generator}.config.json" for name, generator in GENERATED)])
    assert "Exception" not in said, said[-5000:]
    programs = [f"{name}-{generator}/index.ts" for name, generator in GENERATED if generator.startswith("typescript")]
    run(["npx", "tsc", "--strict", "--skipLibCheck", "--noEmit", "--target", "es2022", "--module", "nodenext", *programs, "odd.d.ts", "one.d.ts", "none.d.ts"])
    assert (folder / "odd-go" / "model_task_answer.go").exists()
    assert list((folder / "odd-java").rglob("TaskAnswer.java"))
    (folder / "answers.json").write_text(json.dumps(list(answers().values())))
    (folder / "read.py").write_text(READ)
    paths = ":".join(str(folder / f"{name}-python") for name in ("odd", "one", "none"))
    assert run(f"PYTHONPATH={paths} python read.py").strip() == str(list(answers()))
    told = run(["openapi-python-client", "generate", "--path", "odd.json", "--meta", "none", "--output-path", "odd_client"])
    run(["python", "-c", READ_ALL])
    assert "Error" not in told, told


def answers() -> dict[str, dict[str, Any]]:
    """Answers to writes, by the schema that each has."""
    now = datetime.now(UTC).isoformat()
    receipt: dict[str, Any] = {"id": str(uuid4()), "status": "pending", "queue": "q", "priority": 5, "timeout": 1.5, "max_attempts": 1, "attempt": 0}
    receipt |= {"created_at": now, "updated_at": now, "finished_at": None, "next_run_at": None, "cancel_requested": False, "version": 1}
    absent = ("run_at", "expires_at", "unique_key", "parent_id", "result", "error", "progress", "queued_at", "started_at", "position", "estimated_start")
    task = receipt | dict.fromkeys(absent) | {"namespace": "default", "tags": [], "metadata": {}}
    cat = {"kind": "cat"}
    return {
        "TaskOddUnion": task | {"type": "odd.union", "payload": cat, "result": cat},
        "TaskOddPage": task | {"type": "odd.page", "payload": {"items": [cat]}, "result": {"items": [{"kind": "dog"}]}},
        "TaskOddWords": task | {"type": "odd.old-words", "payload": {"several": ["a"]}, "result": ["a"]},
        "TaskOddAny": task | {"type": "odd.any", "payload": [1], "result": "x"},
        "TaskOddNone": task | {"type": "odd.none", "payload": None},
        "OtherTask": task | {"type": "of.a.plugin.that.is.gone", "payload": {"a": 1}},
        "TaskReceipt": receipt | {"type": "odd.union"},
    }


def test_the_page_shows_a_way_for_each_generator_that_it_names() -> None:
    commands = [command for example in examples() for command in example.commands]
    assert {found[1] for command in commands if (found := re.search(r" -g (\S+)", command))} == {name for _, name in GENERATED}
    assert [file for file in EXAMPLES if file] == ["types.ts", "fetch.ts", "axios.ts", "client.py", "generated.py"]
