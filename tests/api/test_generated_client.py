"""A client that openapi-python-client makes of the document: it is whole, its types hold, and it submits a task and reads it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.api.test_schemathesis import prepare, running, settings_of
from tests.client_tools import TOOLS, install_client_tools
from tests.databases import cloned

#: The generator needs an older typer than we do, so it has an environment of its own; so would a stranger.
PYTHON = TOOLS / "bin" / "python"
NAME = "taskyard_generated"
#: What a stranger writes with the client. It is type-checked, too.
SCRIPT = """
import asyncio
import sys

from taskyard_generated import AuthenticatedClient
from taskyard_generated.api.tasks import cancel_task, get_task, list_tasks, submit_task
from taskyard_generated.models import PayloadDemoWords, Problem, SubmitDemoEcho, TaskDemoEcho, TaskPage

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True)
task = submit_task.sync(client=client, body=SubmitDemoEcho(type_="demo.echo", payload=PayloadDemoWords(text="hello"), tags=["generated"]))
assert isinstance(task, TaskDemoEcho), task
assert task.payload.text == "hello"

again = get_task.sync(task.id, client=client)
assert isinstance(again, TaskDemoEcho) and again.position == 1, again
again.position = None
assert again == task, again
page = asyncio.run(list_tasks.asyncio(client=client, tag=["generated"]))
assert isinstance(page, TaskPage) and page.items == [task], page

cancelled = cancel_task.sync(task.id, client=client)
assert isinstance(cancelled, TaskDemoEcho) and cancelled.status == "cancelled", cancelled
refused = cancel_task.sync(task.id, client=client)
assert isinstance(refused, Problem) and refused.type_ == "urn:taskyard:problem:illegal-transition", refused
assert refused.task_status == "cancelled" and refused.allowed == ["retry"], refused

wrong = submit_task.sync(client=client, body=SubmitDemoEcho(type_="demo.echo", payload=PayloadDemoWords(text="x"), priority=10))
assert isinstance(wrong, Problem) and wrong.status == 422, wrong
assert isinstance(wrong.errors, list) and wrong.errors[0].pointer == "/priority", wrong
nobody = get_task.sync(task.id, client=AuthenticatedClient(base_url=url, token="ty_wrong"))
assert isinstance(nobody, Problem) and nobody.status == 401, nobody
print("done")
"""


@pytest.fixture(scope="module")
def generator() -> Path:
    install_client_tools()
    return PYTHON


@pytest.fixture
def service(postgres_url: str, template: str) -> Iterator[tuple[str, str]]:
    """(address, key)"""
    with cloned(postgres_url, template) as url:
        settings = settings_of(url)
        key = prepare(url, settings)
        with running(settings) as address:
            yield address, key


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "PATH": f"{PYTHON.parent}:{os.environ['PATH']}"}
    ran = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    return ran.stdout + ran.stderr


@pytest.mark.one_pair
def test_a_generated_client_is_whole_and_submits_a_task_and_reads_it_back(service: tuple[str, str], generator: Path, tmp_path: Path) -> None:
    address, key = service
    document = httpx2.get(f"{address}/openapi.json", headers={"X-API-Key": key}).json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    said = run(generator, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none", "--output-path", NAME, cwd=tmp_path)
    assert "Warning" not in said, "the generator left something out"
    calls = {file.stem for file in (tmp_path / NAME / "api").glob("*/*.py")} - {"__init__"}
    promised = {call["operationId"] for methods in document["paths"].values() for call in methods.values()}
    assert calls == promised
    (tmp_path / "use.py").write_text(SCRIPT)
    every = [str(file.relative_to(tmp_path).with_suffix("")).replace("/", ".") for file in (tmp_path / NAME).rglob("*.py") if file.stem != "__init__"]
    run(generator, "-W", "error", "-c", "\n".join(f"import {module}" for module in every), cwd=tmp_path)
    # The generator's own base class, the same for every document, passes `__exit__` less than mypy wants.
    # And of a field that is always null, it assigns what a function answers that only ever answers None.
    models = f"[mypy-{NAME}.models.*]\ndisable_error_code = func-returns-value\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{NAME}.client]\nignore_errors = true\n{models}")
    run(sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", generator, "--cache-dir", tmp_path / "cache", "use.py", cwd=tmp_path)
    assert run(generator, "use.py", address, key, cwd=tmp_path).endswith("done\n")
