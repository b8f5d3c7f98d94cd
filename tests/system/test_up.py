"""`taskyard up` as people run it: one command, everything works, and nothing is left when it ends."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.stack import until

PATIENCE = 60.0
PARTS = {
    "web": "taskyard serve",
    "dispatcher": "taskyard dispatcher",
    "worker": "taskyard worker",
    "broker": "redis-server",
    "postgres": "bin/postgres",
}
READ_BY_TASKYARD = ("TASKYARD_", "DATABASE_URL", "CELERY_", "POSTGRES_")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(READ_BY_TASKYARD)}


class Up:
    """One `taskyard up`, with its log in a file."""

    def __init__(self, folder: Path, *arguments: str, under: Sequence[str] = (), **environment: str) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        command = under or [sys.executable, "-m", "taskyard", "up", "--port", "0", *arguments]
        settings = _clean_environment() | environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=bool(under))
        self.url = ""
        self.curl = ""
        self.family: dict[int, psutil.Process] = {}

    def until_ready(self) -> Up:
        assert self.process.stdout
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            assert ready.select(PATIENCE), self.said()
        banner = []
        while (line := self.process.stdout.readline()) and "Stop" not in line:
            banner.append(line.strip())
        assert "Taskyard is ready." in banner, self.said()
        self.url = next(line for line in banner if line.startswith("API")).split()[1].removesuffix("/api/v1")
        self.curl = next(line for line in banner if line.startswith("Try"))[len("Try") :].strip()
        self.look()
        return self

    def look(self) -> None:
        """Remember all processes that there are now."""
        self.family |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}

    def child(self, command: str) -> psutil.Process:
        found = [child for child in psutil.Process(self.process.pid).children() if command in " ".join(child.cmdline())]
        assert len(found) == 1, found
        return found[0]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.look()
            self.process.send_signal(number)
        return self.ends()

    def ends(self) -> int:
        status = self.process.wait(PATIENCE)
        if self.process.stdout:
            self.process.stdout.close()
        return status

    def left(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.family.values(), timeout=PATIENCE)[1]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until_said(self, words: str) -> None:
        until(lambda: words in self.said(), PATIENCE, words)

    def submit(self, text: str) -> str:
        answer = httpx2.post(f"{self.url}/api/v1/tasks", json={"type": "demo.echo", "payload": {"text": text}})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def try_to_submit(self, text: str) -> str:
        try:
            return self.submit(text)
        except (httpx2.HTTPError, AssertionError):
            return ""

    def status(self, task: str) -> str:
        return str(httpx2.get(f"{self.url}/api/v1/tasks/{task}").json()["status"])

    def succeeds(self, task: str) -> None:
        until(lambda: self.status(task) == "succeeded", PATIENCE, f"the end of {task}: {self.said()}")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ty-up-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: str, **environment: str) -> Up:
        started.append(Up(folder, *arguments, **environment))
        return started[-1]

    yield start
    for up in started:
        up.stop(signal.SIGKILL)
        up.left()


@pytest.fixture(scope="module")
def running() -> Iterator[Up]:
    """One that the tests which change nothing share."""
    with tempfile.TemporaryDirectory(prefix="ty-up-", dir="/tmp", ignore_cleanup_errors=True) as made:
        up = Up(Path(made))
        try:
            yield up.until_ready()
        finally:
            up.stop(signal.SIGKILL)
            up.left()


def _sockets_and_locks(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_socket() or path.name in ("postmaster.pid", "pid") or path.suffix == ".lock")


def test_the_pasted_line_submits_a_task_that_succeeds(running: Up) -> None:
    answer = json.loads(subprocess.check_output(running.curl, shell=True, text=True))
    assert answer["status"] in ("pending", "queued", "running", "succeeded")
    running.succeeds(answer["id"])


def test_no_part_listens_on_tcp_but_the_service(running: Up) -> None:
    running.look()
    sockets = [found for process in running.family.values() if process.is_running() for found in process.net_connections(kind="inet")]
    assert {found.laddr.port for found in sockets if found.status == psutil.CONN_LISTEN} == {int(running.url.rpartition(":")[2])}


@pytest.mark.parametrize("command", [("doctor",), ("health", "worker"), ("health", "dispatcher"), ("health", "web")], ids=" ".join)
def test_the_checks_of_a_default_up_find_its_embedded_servers_and_nothing_to_mend(running: Up, command: tuple[str, ...]) -> None:
    port = {"TASKYARD_API__PORT": running.url.rpartition(":")[2]}
    done = subprocess.run([sys.executable, "-m", "taskyard", *command], cwd=running.folder, env=_clean_environment() | port, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_on_one_folder_are_refused_with_a_sentence_and_the_first_goes_on(running: Up) -> None:
    second = Up(running.folder)
    assert second.ends() == 1
    assert "in use by another Taskyard" in running.said()
    running.succeeds(running.submit("still there"))


def test_a_signal_stops_all_of_it_and_the_data_is_there_at_the_next_start(start: Callable[..., Up], folder: Path) -> None:
    up = start().until_ready()
    task = up.submit("before")
    up.succeeds(task)
    assert up.stop(signal.SIGTERM) == 0, up.said()
    assert up.left() == []
    assert _sockets_and_locks(folder) == []
    again = start().until_ready()
    assert again.status(task) == "succeeded"
    assert again.stop(signal.SIGINT) == 0, again.said()
    assert again.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_as_gentle_as_one_to_the_parent(folder: Path, number: signal.Signals) -> None:
    (folder / "Makefile").write_text(f"run:\n\t@exec {sys.executable} -m taskyard up --port 0\n")
    up = Up(folder, under=["make", "run"]).until_ready()
    try:
        task = up.submit("before")
        up.succeeds(task)
    finally:
        os.killpg(up.process.pid, number)
        up.ends()
    assert up.left() == []
    assert "is killed" not in up.said()
    assert re.search(r"\| stopped$", up.said(), re.MULTILINE), up.said()


def test_a_killed_up_leaves_no_orphans_and_the_next_start_works(start: Callable[..., Up]) -> None:
    up = start().until_ready()
    task = up.submit("before")
    up.succeeds(task)
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    again = start().until_ready()
    assert again.status(task) == "succeeded"
    assert up.left() == []
    again.succeeds(again.submit("after"))


def test_a_part_that_is_killed_is_started_again_and_tasks_go_on(start: Callable[..., Up]) -> None:
    up = start().until_ready()
    for part, command in PARTS.items():
        victim = up.child(command)
        below = victim.children(recursive=True)
        victim.kill()
        up.until_said(f"{part} was killed by SIGKILL; starting it again")
        assert psutil.wait_procs(below, timeout=PATIENCE)[1] == [], part
        up.succeeds(until(lambda: up.try_to_submit("after"), PATIENCE, "the service"))
    assert up.stop() == 0
    assert up.left() == []


def test_an_embedded_start_refuses_other_machines_with_a_sentence(start: Callable[..., Up], folder: Path) -> None:
    up = start("--host", "0.0.0.0")
    assert up.ends() == 1
    assert "listens on loopback" in up.said()
    assert not (folder / ".taskyard").exists()


def test_a_taken_port_is_named(start: Callable[..., Up]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = start("--port", str(port))
        assert up.ends() == 1
    assert f"port {port}" in up.said()
    assert "Traceback" not in up.said()


@pytest.mark.one_pair
def test_what_has_a_url_is_not_embedded(start: Callable[..., Up], database_url: str, folder: Path) -> None:
    up = start("--workers", "2", DATABASE_URL=database_url).until_ready()
    up.succeeds(up.submit("elsewhere"))
    assert sorted(path.name for path in (folder / ".taskyard").iterdir()) == ["broker", "run"]
    assert {"worker-1", "worker-2"} <= set(re.findall(r"^(\S+) +\|", up.said(), re.MULTILINE))
    assert up.stop() == 0


def test_the_filesystem_broker_works_where_redis_is_not_to_be_had(start: Callable[..., Up], folder: Path) -> None:
    (folder / "messages").mkdir()
    up = start(CELERY_BROKER_URL=f"filesystem://{folder}/messages").until_ready()
    up.succeeds(up.submit("by file"))
    assert up.stop() == 0


def test_a_wrong_setting_of_a_part_ends_it_with_that_parts_sentence(start: Callable[..., Up], folder: Path) -> None:
    (folder / "taskyard.toml").write_text('[[routes]]\nname = "r"\nnotifier = "carrier-pigeon"\nevents = ["task.failed"]\n')
    up = start()
    assert up.ends() == 1
    assert "carrier-pigeon" in up.said()
    assert "before it was ready" in up.said()
    assert "Traceback" not in up.said()
