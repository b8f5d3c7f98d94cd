"""`taskyard keys` on a database by URL, and on the embedded one of a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from taskyard import keys
from taskyard.embedded import running_postgres, start_postgres
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
        caller = keys.look_up(connection, secret)
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
