"""`taskyard keys` on a database by URL, and on the embedded one of a folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from taskyard import audit, keys
from taskyard.embedded import running_postgres, start_postgres
from taskyard.routes import disable, sync_routes
from taskyard.settings import Route
from taskyard_migrations.runner import upgrade

Run = subprocess.CompletedProcess[str]


def run(folder: Path, *arguments: str, **environment: str) -> Run:
    command = [sys.executable, "-m", "taskyard", "keys", *arguments]
    return subprocess.run(command, cwd=folder, env={"PATH": os.environ["PATH"]} | environment, capture_output=True, text=True, timeout=120)


def test_a_key_is_shown_once_and_listed_rotated_and_revoked_by_its_name(tmp_path: Path, database_url: str, engine: Engine) -> None:
    made = run(tmp_path, "create", "ci", "--namespace", "builds", "--scopes", "tasks:read, admin", "--expires", "90d", DATABASE_URL=database_url)
    assert made.returncode == 0, made.stderr
    (line,) = [line for line in made.stdout.splitlines() if line.startswith("key")]
    secret = line.split()[1]
    assert secret.startswith("ty_")
    with engine.connect() as connection:
        caller = keys.look_up_all(connection, [secret]).get(secret)
    assert caller is not None
    assert (caller.name, caller.namespace, caller.scopes) == ("ci", "builds", frozenset({"tasks:read", "admin"}))
    again = run(tmp_path, "create", "ci", "--namespace", "builds", DATABASE_URL=database_url)
    assert (again.returncode, "rotate" in again.stderr) == (1, True)
    rotated = json.loads(run(tmp_path, "rotate", "ci", "--namespace", "builds", "--json", DATABASE_URL=database_url).stdout)
    assert (rotated["name"], rotated["scopes"]) == ("ci", ["tasks:read", "admin"])
    listed = run(tmp_path, "list", "--json", DATABASE_URL=database_url).stdout
    assert [(row["name"], row["state"]) for row in json.loads(listed)["items"]] == [("ci", "live"), ("ci", "live")]
    assert secret.split("_", 2)[2] not in listed
    unclear = run(tmp_path, "revoke", "ci", "--namespace", "builds", DATABASE_URL=database_url)
    assert (unclear.returncode, rotated["id"] in unclear.stderr) == (1, True)
    assert run(tmp_path, "revoke", rotated["id"], DATABASE_URL=database_url).returncode == 0
    assert run(tmp_path, "revoke", "ci", "--namespace", "builds", DATABASE_URL=database_url).returncode == 0
    assert "revoked" in run(tmp_path, "list", DATABASE_URL=database_url).stdout


def test_the_audit_has_every_key_that_was_made_rotated_or_revoked_and_by_whom(tmp_path: Path, database_url: str, engine: Engine) -> None:
    first = json.loads(run(tmp_path, "create", "ci", "--namespace", "builds", "--json", DATABASE_URL=database_url).stdout)
    assert run(tmp_path, "create", "ci", "--namespace", "builds", DATABASE_URL=database_url).returncode == 1
    second = json.loads(run(tmp_path, "rotate", "ci", "--namespace", "builds", "--json", DATABASE_URL=database_url).stdout)
    assert run(tmp_path, "revoke", first["id"], DATABASE_URL=database_url).returncode == 0
    rest = "of builds: tasks:read, tasks:write"
    expected = [("key.revoke", f"ci ({first['id']}) {rest}"), ("key.rotate", f"ci ({second['id']}) {rest}"), ("key.create", f"ci ({first['id']}) {rest}")]
    entries = json.loads(run(tmp_path, "audit", "--json", DATABASE_URL=database_url).stdout)["items"]
    assert [(entry["verb"], entry["target"]) for entry in entries] == expected
    assert {entry["address"].partition("@")[2] for entry in entries} == {socket.gethostname()}
    shown = run(tmp_path, "audit", DATABASE_URL=database_url).stdout
    for word in (first["id"], "key.rotate", "no key", socket.gethostname()):
        assert word in shown
    assert first["key"].split("_", 2)[2] not in shown + json.dumps(entries)


def test_the_audit_has_tests_of_routes_replays_and_routes_that_were_switched_on(tmp_path: Path, database_url: str, engine: Engine) -> None:
    (tmp_path / "taskyard.toml").write_text('[[routes]]\nname = "r"\nnotifier = "log"\nevents = ["task.failed"]\n')
    with engine.begin() as connection:
        sync_routes(connection, [Route(name="r", notifier="log", events=("task.failed",))])
        disable(connection, "r", "gone")

    def notifiers(*arguments: str, url: str = database_url) -> Run:
        command = [sys.executable, "-m", "taskyard", "notifiers", *arguments]
        return subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"], "DATABASE_URL": url}, capture_output=True, text=True, timeout=120)

    for arguments in (
        ("test", "r"),
        ("enable", "r"),
        ("enable", "r"),
        ("replay", "--route", "r", "--since", "24h"),
        ("replay", "--route", "r", "--since", "24h", "--dry-run"),
    ):
        assert notifiers(*arguments).returncode == 0, arguments
    assert notifiers("replay", "--route", "nowhere", "--since", "24h").returncode == 1
    with engine.connect() as connection:
        found = [(entry.verb, entry.target.partition(":")[0]) for entry in audit.entries(connection, 10)]
    assert found == [("route.replay", "r"), ("route.enable", "r"), ("route.test", "r")]
    alone = notifiers("test", "r", url="postgresql://postgres@127.0.0.1:1/none")
    assert (alone.returncode, "The audit has no entry of this test: " in alone.stderr) == (0, True), alone.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "x", "--scopes", "task:read"], 1, "'tasks:read'"),
        (["create", "x", "--scopes", ","], 1, "at least one scope"),
        (["create", " "], 1, "can't be named"),
        (["create", "x", "--namespace", "UPPER"], 1, "namespace"),
        (["create", "x", "--expires", "ninety"], 2, "such as 90d"),
        (["create", "x", "--expires", "999999999w"], 2, "hundred years"),
        (["revoke", "nobody"], 1, "No live key 'nobody'"),
        (["rotate", "nobody"], 1, "No live key 'nobody'"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tmp_path: Path, database_url: str, arguments: list[str], code: int, said: str) -> None:
    answer = run(tmp_path, *arguments, DATABASE_URL=database_url)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert said in " ".join(answer.stderr.replace("│", " ").split())
    assert "Traceback" not in answer.stderr


def test_the_embedded_database_is_found_while_it_runs_and_started_where_it_does_not(short_tmp: Path) -> None:
    folder = short_tmp / "keys"
    first = run(short_tmp, "create", "first", "--json", "--data-dir", str(folder))
    assert first.returncode == 0, first.stderr
    assert running_postgres(folder) is None
    server = start_postgres(folder)
    try:
        assert running_postgres(folder) == server.url
        upgrade(server.url)
        second = run(short_tmp, "list", "--json", "--data-dir", str(folder))
        assert [row["name"] for row in json.loads(second.stdout)["items"]] == ["first"], second.stderr
    finally:
        server.stop()
