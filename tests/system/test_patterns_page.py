"""The page docs/patterns.md: each of its plugins is installed, and each of its scripts and commands is used, on one whole Taskyard."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType
from uuid import UUID

import pytest
from sqlalchemy import make_url

from taskyard.client import Client, IllegalTransition, Task, Unreachable, VersionConflict
from tests.docs.markdown import ROOT, blocks
from tests.ground import free_port
from tests.stack import Stack, cloned, until

PAGE = ROOT / "docs" / "patterns.md"
PROGRAMS = {block.partition("\n")[0].removeprefix("# "): block for block in blocks(PAGE, "python")}
PLUGINS = [Path(name).stem for name in PROGRAMS if name.endswith("_plugin.py")]
#: Seconds that end in no test.
LONG = 3600

pytestmark = [pytest.mark.one_pair, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's programs are installed."""
    folder = tmp_path_factory.mktemp("site")
    for name, program in PROGRAMS.items():
        (folder / name).write_text(program)
    info = folder / "patterns-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patterns\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
    entries = [f"{module.removesuffix('_plugin')} = {module}" for module in PLUGINS]
    (info / "entry_points.txt").write_text("\n".join(["[taskyard.plugins]", *entries, ""]))
    return folder


@pytest.fixture(scope="module")
def stack(postgres_url: str, template: str, broker_url: str, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All roles, with the page's plugins. Three processes run sync handlers: some of them wait for a test."""
    port = free_port()
    with cloned(postgres_url, template) as database_url:
        made = Stack(
            database_url,
            broker_url,
            tmp_path_factory.mktemp("stack"),
            PYTHONPATH=str(site),
            TASKYARD_URL=f"http://127.0.0.1:{port}",
            TASKYARD_PLUGINS__CUSTOMERS__DATABASE=make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False),
            TASKYARD_WORKER__PROCESSES="3",
        )
        made.start("dispatcher")
        made.start("worker")
        made.start("serve", "taskyard", "serve", "--port", str(port))
        yield made.ready()
        made.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.env["TASKYARD_URL"]) as client:
        until(lambda: _answers(client), what="the service")
        yield client


def _answers(client: Client) -> bool:
    try:
        return bool(client.plugins())
    except Unreachable:
        return False


def program(site: Path, name: str) -> ModuleType:
    """One of the page's programs, imported."""
    spec = importlib.util.spec_from_file_location(f"page_{Path(name).stem}", site / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_status(client: Client, id_: UUID, *statuses: str) -> Task:
    """A task, once it has one of these statuses."""
    until(lambda: client.get(str(id_)).status in statuses, what=f"task {id_} to be {statuses}")
    return client.get(str(id_))


def ended(client: Client, id_: UUID) -> Task:
    """A task, once it has ended. No wait for another attempt is sat out."""

    def has_ended() -> bool:
        task = client.get(str(id_))
        if task.status == "scheduled":
            hurry(client, task)
        return task.ended

    until(has_ended, what=f"the end of task {id_}")
    return client.get(str(id_))


def hurry(client: Client, task: Task) -> None:
    """Start it now, unless it has begun by itself."""
    with suppress(IllegalTransition):
        client.update(str(task.id), run_at=None)


def child(client: Client, parent: UUID, type_: str) -> Task:
    """The one child of a type, once its parent has ended."""
    assert ended(client, parent).status == "succeeded"
    [found] = client.list(parent_id=str(parent), type=type_)
    return found


def pipe(folder: Path, name: str) -> Path:
    """A file that keeps its reader waiting until a test writes it."""
    path = folder / name
    os.mkfifo(path)
    return path


def test_a_step_is_followed_by_the_next(client: Client) -> None:
    paid = client.submit("order.pay", {"number": 17}, tags=["order-17"])
    packed = ended(client, child(client, paid.id, "order.pack").id)
    assert (paid.result(), packed.result, packed.tags) == ("17 is paid", "17 is packed", ("order-17",))


def test_a_sum_is_made_when_all_children_have_ended(client: Client, tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.png")]
    for picture in pictures:
        picture.write_bytes(b"12345")
    client.pause("pictures")
    album = client.submit("album.measure", {"pictures": [str(picture) for picture in pictures]})
    total = child(client, album.id, "album.add-up")
    waiting = until(lambda: client.get(str(total.id)).error, what="the first look")
    assert (waiting.code, waiting.message) == ("retry-later", "2 of 2 pictures have not ended")
    client.resume("pictures")
    for part in client.list(parent_id=str(album.id), type="album.measure-picture"):
        ended(client, part.id)
    assert ended(client, total.id).result == 10


def test_a_sum_of_children_that_failed_is_made_after_a_persons_retry(client: Client, tmp_path: Path) -> None:
    album = client.submit("album.measure", {"pictures": [str(tmp_path / "late.png")]})
    measured, total = (child(client, album.id, f"album.{name}") for name in ("measure-picture", "add-up"))
    assert ended(client, measured.id).status == "failed"
    failed = ended(client, total.id)
    assert failed.error
    assert (failed.error.code, failed.error.message) == ("incomplete", "1 of 1 pictures could not be measured")
    (tmp_path / "late.png").write_bytes(b"123")
    client.retry(str(measured.id))
    assert ended(client, measured.id).result == 3
    client.retry(str(total.id))
    assert ended(client, total.id).result == 3


def test_a_person_decides_about_large_sums(client: Client, site: Path) -> None:
    approvals = program(site, "approvals.py")
    assert ended(client, child(client, client.submit("payout.ask", {"to": "ann", "euros": 99}).id, "payout.pay").id).result == "ann got 99 euros"
    asked = [child(client, client.submit("payout.ask", {"to": name, "euros": 100}).id, "payout.pay") for name in ("bob", "eve", "zoe")]
    shown = approvals.undecided(client)
    assert {task.id for task in shown} == {task.id for task in asked}
    bob, eve, zoe = (next(task for task in shown if task.payload["to"] == name) for name in ("bob", "eve", "zoe"))
    changed = client.update(str(bob.id), priority=9)
    with pytest.raises(VersionConflict):
        approvals.approve(client, bob)
    approvals.approve(client, changed)
    approvals.refuse(client, eve)
    client.update(str(zoe.id), expires_at=datetime.now(UTC))
    assert in_status(client, bob.id, "succeeded").result == "bob got 100 euros"
    assert (client.get(str(eve.id)).status, in_status(client, zoe.id, "expired").attempt) == ("cancelled", 0)
    assert approvals.undecided(client) == []


def test_the_command_of_a_clock_makes_one_task_a_day(client: Client, stack: Stack) -> None:
    [command] = blocks(PAGE, "sh")
    environment = stack.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env=environment, check=True, capture_output=True, timeout=90)
    days = [task.payload["day"] for task in client.list(type="nightly.report") if task.parent_id is None]
    assert days
    assert len(days) == len(set(days))


def test_a_tick_submits_its_work_and_the_next_tick_once(client: Client, site: Path) -> None:
    next_start = program(site, "nightly_plugin.py").next_start
    first = child(client, client.submit("nightly.tick", {}).id, "nightly.tick")
    assert first.run_at == next_start(first.created_at)
    again = client.submit("nightly.tick", {})
    assert ended(client, again.id).status == "succeeded"
    assert list(client.list(parent_id=str(again.id))) == [], "there is one chain"
    hurry(client, first)
    second = child(client, first.id, "nightly.tick")
    assert second.run_at == next_start(first.run_at)
    night = child(client, first.id, "nightly.report")
    assert ended(client, night.id).result == f"the report of {night.payload['day']}"
    assert date.fromisoformat(night.payload["day"]) == first.run_at.astimezone(program(site, "nightly_plugin.py").BERLIN).date()
    client.cancel(str(second.id))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("2026-11-28T12:00Z", "2026-11-29T01:30Z"),
        ("2026-11-29T01:30Z", "2026-11-30T01:30Z"),
        ("2026-07-01T00:00Z", "2026-07-01T00:30Z"),
        ("2026-12-31T23:30Z", "2027-01-01T01:30Z"),
        # The clock goes from 2:00 to 3:00 ...
        ("2026-03-28T12:00Z", "2026-03-29T01:30Z"),
        ("2026-03-29T01:30Z", "2026-03-30T00:30Z"),
        # ... and from 3:00 back to 2:00.
        ("2026-10-24T12:00Z", "2026-10-25T00:30Z"),
        ("2026-10-25T00:30Z", "2026-10-26T01:30Z"),
        ("2026-10-25T01:10Z", "2026-10-26T01:30Z"),
    ],
)
def test_a_night_has_one_start_also_when_the_clock_changes(site: Path, after: str, expected: str) -> None:
    assert program(site, "nightly_plugin.py").next_start(datetime.fromisoformat(after)) == datetime.fromisoformat(expected)


def test_a_customer_has_two_imports_at_a_time(client: Client, tmp_path: Path) -> None:
    files = [pipe(tmp_path, name) for name in ("first", "second")]
    running = [client.submit("customer.import", {"customer": "ann", "file": str(file)}).id for file in files]
    for id_ in running:
        in_status(client, id_, "running")
    third, other = (client.submit("customer.import", {"customer": name, "file": str(tmp_path / "lines")}).id for name in ("ann", "bob"))
    (tmp_path / "lines").write_text("a\nb\n")
    waiting = until(lambda: client.get(str(third)).error, what="the third one's first look")
    assert (waiting.code, waiting.message) == ("retry-later", "two imports of ann run")
    assert ended(client, other).result == 2
    files[0].write_text("a\n")
    assert ended(client, running[0]).result == 1
    assert ended(client, third).result == 2
    files[1].write_text("a\n")
    assert ended(client, running[1]).result == 1


def test_a_document_is_indexed_once_after_its_last_change(client: Client, site: Path, tmp_path: Path) -> None:
    changed = program(site, "changes.py").changed
    document = pipe(tmp_path, "document")

    def tasks() -> list[Task]:
        return [task for task in client.list(type="document.index") if task.payload["path"] == str(document)]

    for quiet in (LONG, 2 * LONG):
        changed(client, str(document), quiet)
    [first] = tasks()
    assert first.run_at
    assert (first.run_at - first.created_at).total_seconds() > LONG, "the last change moved its start"
    changed(client, str(document), 0)
    in_status(client, first.id, "running")
    for quiet in (LONG, 2 * LONG):
        changed(client, str(document), quiet)
    second, _ = tasks()
    assert (second.status, second.id != first.id) == ("scheduled", True)
    document.write_text("one two")
    assert ended(client, first.id).result == 2
    hurry(client, second)
    document.write_text("one two three")
    assert ended(client, second.id).result == 3


def test_each_pattern_is_in_the_pages_table_and_says_its_limits() -> None:
    sections = PAGE.read_text().split("\n## ")[1:]
    assert all("**Limits.**" in section for section in sections)
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE.read_text())
    assert len(links) == len(sections)
