"""`taskyard submit` and `taskyard tasks` against the real REST service."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import Engine

from taskyard import lifecycle, tasklogs
from taskyard.plugins import load_plugins
from taskyard.records import Finished
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from tests.stack import until

pytestmark = pytest.mark.one_pair

PAYLOAD = json.dumps({"url": "https://example.com/"})
QUEUE = "default"


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """The REST service on a port of its own."""
    app = create_app(Settings(database=DatabaseSettings(url=SecretStr(database_url))), load_plugins())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


class Client:
    """Runs `taskyard` against one service."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "TASKYARD_URL": url,
            "HOME": str(folder),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "taskyard", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test left."""
        for process in self.started:
            process.kill()
            process.communicate()

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=60)
        assert process.returncode == code, out + err
        return out, err

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json")[0])

    def complete(self, *words: str) -> list[str]:
        """What a shell offers for the last of these words."""
        asked = {"_TASKYARD_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["taskyard", *words]), "COMP_CWORD": str(len(words))}
        run = subprocess.run([sys.executable, "-m", "taskyard"], cwd=self.folder, env=self.environment | asked, capture_output=True, text=True, timeout=60)
        assert run.stderr == ""
        return run.stdout.split()

    def submit(self, *options: str) -> dict[str, Any]:
        task: dict[str, Any] = self.json("submit", "http.request", "--payload", PAYLOAD, *options)
        return task


@pytest.fixture
def client(url: str, tmp_path: Path) -> Iterator[Client]:
    made = Client(url, tmp_path)
    yield made
    made.close()


def run(engine: Engine, id_: str, outcome: Any, *, result: str | None = '{"status": 200}', error: dict[str, Any] | None = None) -> None:
    """Be the dispatcher and the worker of one task."""
    worker = uuid4()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", [QUEUE], {})
        lifecycle.dispatch(connection, QUEUE, "async", 10, 60)
        (row,) = lifecycle.claim(connection, worker, QUEUE, "async", [UUID(id_)], ["http.request"], 1)
        lifecycle.finish(connection, [Finished(row["id"], row["fence"], outcome, result=result, error=error)], 3)


def wait_until_submitted(client: Client) -> str:
    """The id of the task that another process submits."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if items := client.json("tasks", "list")["items"]:
            return str(items[0]["id"])
    raise AssertionError("no task was submitted")


def test_submit_takes_every_option_and_tells_the_task(client: Client) -> None:
    task = client.submit(
        "--priority", "9", "--queue", "io", "--delay", "60", "--timeout", "5", "--tag", "a", "--tag", "b", "--metadata", '{"k": 1}', "--max-attempts", "2"
    )
    told = {name: task[name] for name in ("type", "status", "priority", "queue", "timeout", "tags", "metadata", "max_attempts")}
    assert told == {
        "type": "http.request",
        "status": "scheduled",
        "priority": 9,
        "queue": "io",
        "timeout": 5,
        "tags": ["a", "b"],
        "metadata": {"k": 1},
        "max_attempts": 2,
    }
    later = client.submit("--run-at", "2040-01-31T12:00:00+0100", "--expires-at", "2041-01-31T12:00:00", "--unique-key", "one")
    assert later["run_at"].startswith("2040-01-31T11:00:00")
    _, err = client("submit", "http.request", "--payload", PAYLOAD, "--unique-key", "one", code=1)
    assert later["id"] in err


def test_a_time_that_is_none_is_wrong_use(client: Client) -> None:
    _, err = client("submit", "http.request", "--run-at", "tomorrow", code=2)
    assert "2030-01-31T12:00:00" in err


def test_the_payload_may_come_from_a_file_or_standard_input(client: Client) -> None:
    (client.folder / "payload.json").write_text(PAYLOAD)
    out, _ = client("submit", "http.request", "--payload", "@payload.json")
    assert "https://example.com/" in out
    client("submit", "http.request", "--payload", "@-", stdin=PAYLOAD)
    out, _ = client("submit", "http.request", "--payload", "-", stdin=PAYLOAD)
    assert "pending" in out


def test_a_problem_is_told_with_each_place_and_the_near_type(client: Client) -> None:
    _, err = client("submit", "http.request", "--payload", '{"url": 3, "nonsense": 1}', code=1)
    assert "/payload/url" in err
    assert "/payload/nonsense" in err
    _, err = client("submit", "http.reqest", code=1)
    assert "http.request" in err
    _, err = client("tasks", "show", str(uuid4()), code=1)
    assert "Traceback" not in err


def lines(*urls: str, **more: Any) -> str:
    return "".join(json.dumps({"type": "http.request", "payload": {"url": url}, **more}) + "\n" for url in urls)


def test_tasks_are_submitted_from_lines_once_however_often(client: Client) -> None:
    written = client.folder / "tasks.jsonl"
    written.write_text("\ufeff" + lines("https://a/", "https://b/", priority=9) + "\n" + json.dumps({"payload": {"url": "https://c/"}}))
    out, err = client("submit", "http.request", "--from", "tasks.jsonl", "--tag", "nightly", "--priority", "2")
    assert (out, err.splitlines()[-1]) == ("", "3 tasks are submitted.")
    listed = [(task["payload"]["url"], task["priority"], task["tags"]) for task in client.json("tasks", "list")["items"]]
    assert listed == [("https://c/", 2, ["nightly"]), ("https://b/", 9, ["nightly"]), ("https://a/", 9, ["nightly"])]
    _, err = client("submit", "http.request", "--from", "-", "--tag", "nightly", "--priority", "2", stdin=written.read_text())
    assert err.splitlines()[-1] == "3 tasks are submitted, 3 of them by an earlier run."
    out, _ = client("submit", "http.request", "--from", "tasks.jsonl", "--idempotency-key", "again", "--json")
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 2, 4]
    assert len(client.json("tasks", "list")["items"]) == 6


def test_a_wrong_line_is_named_and_what_was_submitted_before_it_is_said(client: Client) -> None:
    many = lines(*(f"https://a/{n}" for n in range(1001)))
    _, err = client("submit", "--from", "-", stdin=many + lines("https://b/", prio=1) + lines("no address"), code=1)
    assert "1000 tasks are submitted. They are up to line 1000; nothing after it is." in err
    assert "line 1002: /prio: unknown name. Did you mean 'priority'?" in err
    assert "line 1003: /payload/url: " in err
    _, err = client("submit", "--from", "-", stdin=many + lines("https://b/", "https://c/"))
    assert err.splitlines()[-1] == "1003 tasks are submitted, 1000 of them by an earlier run."
    for wrong, said in [("[1]", "Line 2 is no task"), ("{", "Line 2 is not JSON"), ('{"payload": 1e400}', "Line 2 is not JSON that can be sent: /payload")]:
        _, err = client("submit", "--from", "-", stdin=f"{lines('https://new/')}{wrong}\n", code=1)
        assert said in err
        assert "Nothing is submitted." in err
    _, err = client("submit", "--from", "-", "--validate-only", stdin=lines("https://new/", "https://new/"))
    assert err.splitlines()[-1] == "2 tasks are right; nothing is submitted."
    _, err = client("submit", "--from", "-", "--validate-only", stdin=lines("https://new/"))
    assert err.splitlines()[-1] == "1 task is right; nothing is submitted."
    _, err = client("submit", "--from", "-", stdin='\n{"type": "http.request", "payload": {"url": "https://new/"}, "metadata": {"n": [NaN]}}', code=1)
    assert "line 2: /metadata/n/0: NaN and infinities are not JSON" in err
    _, err = client("submit", "--from", "nowhere.jsonl", code=2)
    assert "nowhere.jsonl" in err


def test_what_can_be_submitted_is_listed_and_shown(client: Client) -> None:
    out, _ = client("task-types", "list")
    assert "http.request" in out
    assert [kind["type"] for kind in client.json("task-types", "list")["items"]] == sorted(kind["type"] for kind in client.json("task-types", "list")["items"])
    out, _ = client("task-types", "show", "http.request")
    assert "max attempts" in out
    assert '\n      "url": {\n' in out, "a schema is on lines of its own"
    assert client.json("task-types", "show", "http.request")["payload_schema"]["properties"]["url"]
    _, err = client("task-types", "show", "http.requst", code=1)
    assert "http.requst" in err


@pytest.mark.parametrize(
    ("payload", "said"), [('{"depth": 12345678901234567890.5}', "/depth: a number that would change"), ('{"url": 1, "url": 2}', "'url' is there twice")]
)
def test_a_payload_that_would_change_on_its_way_is_wrong_use(client: Client, payload: str, said: str) -> None:
    _, err = client("submit", "http.request", "--payload", payload, code=2)
    assert said in " ".join(err.replace("│", " ").split())
    _, err = client("submit", "http.request", "--payload", PAYLOAD, "--metadata", payload, code=2)
    assert "--metadata" in err


@pytest.mark.parametrize("payload", ['{"url": "\\ud800"}', '{"url": NaN}', '{"url": "\\u0000"}', "[]"])
def test_a_payload_that_the_service_refuses_is_told_without_a_trace(client: Client, payload: str) -> None:
    _, err = client("submit", "http.request", "--payload", payload, code=1)
    assert "Traceback" not in err
    assert "The request" in err


def test_submit_can_wait_for_success(client: Client, engine: Engine) -> None:
    waiting = client.start("submit", "http.request", "--payload", PAYLOAD, "--wait", "--json")
    run(engine, wait_until_submitted(client), "succeeded")
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert (json.loads(out)["status"], json.loads(out)["result"]) == ("succeeded", {"status": 200})


def test_waiting_for_a_task_that_is_cancelled_ends_with_1(client: Client) -> None:
    waiting = client.start("submit", "http.request", "--payload", PAYLOAD, "--wait")
    client("tasks", "cancel", wait_until_submitted(client))
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, "cancelled" in out) == (1, True), err


def test_tasks_are_listed_with_filters_page_by_page(client: Client) -> None:
    ids = [client.submit("--tag", tag)["id"] for tag in ("a", "a", "b")]
    assert [task["id"] for task in client.json("tasks", "list")["items"]] == ids[::-1]
    assert [task["id"] for task in client.json("tasks", "list", "--tag", "a", "--status", "pending")["items"]] == [ids[1], ids[0]]
    out, err = client("tasks", "list", "--limit", "2")
    header, *rows = out.splitlines()
    assert header.split() == ["ID", "TYPE", "STATUS", "QUEUE", "PRIO", "CREATED"]
    assert [row.split()[0] for row in rows] == [ids[2], ids[1]]
    rest = client.json("tasks", "list", "--limit", "2", "--cursor", err.split()[-1])
    assert [task["id"] for task in rest["items"]] == [ids[0]]


def test_tasks_are_moved_by_the_verbs(client: Client) -> None:
    first, second = client.submit()["id"], client.submit()["id"]
    for verb, status in (("hold", "held"), ("release", "pending"), ("cancel", "cancelled"), ("retry", "pending")):
        moved = client.json("tasks", verb, first, second)["items"]
        assert [(task["id"], task["status"]) for task in moved] == [(first, status), (second, status)]
    _, err = client("tasks", "release", first, code=1)
    assert "pending" in err


def test_show_tells_a_task_and_its_history(client: Client, engine: Engine) -> None:
    id_ = client.submit()["id"]
    run(engine, id_, "succeeded")
    out, _ = client("tasks", "show", id_)
    for word in ("https://example.com/", "succeeded", "task.submitted", "task.started", "task.succeeded"):
        assert word in out
    shown = client.json("tasks", "show", id_)
    assert [event["type"] for event in shown["events"]] == ["task.submitted", "task.started", "task.succeeded"]


def test_show_tells_where_a_task_has_failed_and_its_traceback_line_by_line(client: Client, engine: Engine) -> None:
    id_ = client.submit()["id"]
    trace = "Traceback (most recent call last):\n  File words.py\n\x1b[31mKeyError: 'missing'"
    run(engine, id_, "failed", error={"code": "KeyError", "message": "'missing'", "where": "/srv/words.py:12, in count", "traceback": trace})
    lines = client("tasks", "show", id_)[0].splitlines()
    at = lines.index("traceback")
    assert lines[at + 1 : at + 4] == ["  Traceback (most recent call last):", "    File words.py", "  \\x1b[31mKeyError: 'missing'"]
    assert sum("/srv/words.py:12, in count" in line for line in lines) == 2, "the task and its last event"
    assert sum("Traceback" in line for line in lines) == 1


@pytest.mark.parametrize(("outcome", "code"), [("succeeded", 0), ("failed", 1)])
def test_watch_tells_each_event_once_until_the_end(client: Client, engine: Engine, outcome: str, code: int) -> None:
    id_ = client.submit()["id"]
    watching = client.start("tasks", "watch", id_, "--json")
    assert watching.stdout is not None
    first = json.loads(watching.stdout.readline())
    run(engine, id_, outcome)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == code, err
    assert [first["type"], *(json.loads(line)["type"] for line in out.splitlines())] == ["task.submitted", "task.started", f"task.{outcome}"]


def test_people_see_a_tasks_result_and_events_as_json(client: Client, engine: Engine) -> None:
    id_ = client.submit()["id"]
    run(engine, id_, "succeeded", result='{"ok": true, "pages": [1, null]}')
    out, _ = client("tasks", "watch", id_)
    assert out.splitlines()[-2:] == ["status  succeeded", 'result  {"ok": true, "pages": [1, null]}']
    assert '"worker": "w"' in out
    assert "{'" not in out
    out, _ = client("tasks", "show", id_)
    assert '"worker": "w"' in out
    assert '{"ok": true, "pages": [1, null]}' in out
    assert "{'" not in out


def test_people_see_why_a_task_has_no_result(client: Client, engine: Engine) -> None:
    id_ = client.submit()["id"]
    run(engine, id_, "failed", error={"code": "no-disk", "message": "full", "traceback": "many lines"})
    out, _ = client("tasks", "watch", id_, code=1)
    assert out.splitlines()[-2:] == ["status  failed", 'error   {"code": "no-disk", "message": "full"}']


def test_what_a_client_submitted_can_not_drive_the_terminal(client: Client) -> None:
    client.submit("--tag", "\x1b[31mred")
    id_ = client.json("tasks", "list")["items"][0]["id"]
    out, _ = client("tasks", "show", id_)
    assert "\x1b" not in out
    assert r"\x1b[31mred" in out


def test_a_submission_may_be_repeated_by_its_key_or_only_be_checked(client: Client) -> None:
    first, again = client.submit("--idempotency-key", "k"), client.submit("--idempotency-key", "k")
    assert first["id"] == again["id"]
    assert "id" not in client.submit("--validate-only")
    assert len(client.json("tasks", "list")["items"]) == 1


def test_all_that_a_filter_finds_are_moved_at_once(client: Client) -> None:
    for tag in ("a", "a", "b"):
        client.submit("--tag", tag)
    would = client.json("tasks", "cancel", "--filter", "tag=a", "--filter", "priority=5", "--dry-run")
    assert would == {"matched": 2, "changed": 0, "would_change": [{"status": "pending", "becomes": "cancelled", "count": 2}]}
    _, err = client("tasks", "cancel", "--filter", "tag=a", "--dry-run")
    assert "2 found. Would change: 2 pending → cancelled." in err
    _, err = client("tasks", "retry", "--filter", "metadata.plan=free", "--dry-run")
    assert "0 found. Would change: nothing." in err
    _, err = client("tasks", "hold", "--filter", "tag=a")
    assert "2 found, 2 changed." in err
    assert len(client.json("tasks", "list", "--status", "held")["items"]) == 2
    _, err = client("tasks", "hold", "--filter", "statsu=held", code=1)
    assert "'status'" in err
    for wrong in ([], ["--filter", "tag"], ["some-id", "--filter", "tag=a"], ["some-id", "--dry-run"]):
        client("tasks", "hold", *wrong, code=2)


def test_tasks_are_listed_by_key_and_metadata(client: Client) -> None:
    one = client.submit("--unique-key", "one", "--metadata", '{"customer": 42}')["id"]
    client.submit("--metadata", '{"customer": 43}')
    for options in (["--unique-key", "one"], ["--metadata", "customer=42"]):
        assert [task["id"] for task in client.json("tasks", "list", *options)["items"]] == [one]
    client("tasks", "list", "--metadata", "customer", code=2)


def test_show_tells_where_a_waiting_task_stands(client: Client) -> None:
    tasks = [client.submit() for _ in range(3)]
    _, err = client("tasks", "show", tasks[2]["id"])
    assert "In line: 3. Estimated start: unknown." in err
    assert client.json("tasks", "show", tasks[0]["id"])["position"] == 1


def test_profiles_name_services_and_a_file_that_others_can_read_is_told(client: Client, url: str) -> None:
    home = client.folder / "config"
    (home / "taskyard").mkdir(parents=True)
    file = home / "taskyard" / "profiles.toml"
    file.write_text(f'[here]\nurl = "{url}"\nkey = "ty_x"\n[gone]\nurl = "http://127.0.0.1:1"\n')
    file.chmod(0o644)
    del client.environment["TASKYARD_URL"]
    client.environment["XDG_CONFIG_HOME"] = str(home)
    _, err = client("tasks", "list", "--profile", "here")
    assert f"chmod 600 {file}" in err
    file.chmod(0o600)
    assert client("tasks", "list", "--profile", "here")[1] == ""
    _, err = client("tasks", "list", "--profile", "gone", code=1)
    assert "Nothing answers at http://127.0.0.1:1" in err
    _, err = client("tasks", "list", "--profile", "her", code=1)
    assert "Did you mean 'here'?" in err
    client.environment["TASKYARD_PROFILE"] = "here"
    assert client.submit()["status"] == "pending"
    assert client.complete("tasks", "list", "--profile", "") == ["gone", "here"]


def test_a_shell_completes_types_ids_queues_statuses_and_options(client: Client) -> None:
    task = client.submit()
    assert "http.request" in client.complete("submit", "http.r")
    assert client.complete("tasks", "show", task["id"][:8]) == [task["id"]]
    assert client.complete("tasks", "list", "--status", "su") == ["succeeded"]
    assert client.complete("tasks", "list", "--queue", "defa") == ["default"]
    assert "watch" in client.complete("tasks", "w")
    assert "--profile" in client.complete("tasks", "list", "--pro")
    client.environment["TASKYARD_URL"] = "http://127.0.0.1:1"
    assert client.complete("submit", "http.r") == [], "a service that is away completes nothing, and says nothing"


def test_all_tasks_can_be_watched_with_a_filter(client: Client) -> None:
    watching = client.start("tasks", "watch", "--filter", "tag=told")
    assert watching.stdout is not None
    lines: list[str] = []
    reader = Thread(target=lambda: lines.extend(iter(watching.stdout.readline, "")))  # type: ignore[union-attr]  # asserted above
    reader.start()
    ids: list[str] = []

    def told() -> bool:
        ids.append(client.submit("--tag", "told")["id"])
        return bool(lines)

    until(told, 60, "the first event")
    client.submit("--tag", "other")
    last = client.submit("--tag", "told")["id"]
    until(lambda: any(last in line for line in lines), 30, "the last event")
    watching.terminate()
    reader.join(30)
    assert all("http.request  task.submitted" in line for line in lines)
    assert {line.split()[1] for line in lines} <= {*ids, last}


def test_who_waits_at_a_terminal_sees_progress_while_it_runs(client: Client, engine: Engine) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "taskyard", "submit", "http.request", "--payload", PAYLOAD, "--wait"]
    environment = client.environment | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=client.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, text=True)
    client.started.append(process)
    os.close(theirs)
    seen = bytearray()
    reader = Thread(target=_read_terminal, args=(ours, seen))
    reader.start()
    id_ = UUID(wait_until_submitted(client))
    worker = uuid4()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", [QUEUE], {})
        lifecycle.dispatch(connection, QUEUE, "async", 10, 60)
        (row,) = lifecycle.claim(connection, worker, QUEUE, "async", [id_], ["http.request"], 1)
        lifecycle.progress(connection, {(id_, row["fence"]): {"fraction": 0.5, "message": "half of it [bold]"}})
    until(lambda: b"half of it [bold]" in seen, 30, "the progress")
    assert process.poll() is None
    with engine.begin() as connection:
        lifecycle.finish(connection, [Finished(id_, row["fence"], "succeeded", result="{}")], 3)
    out, _ = process.communicate(timeout=60)
    reader.join(30)
    os.close(ours)
    assert (process.returncode, "succeeded" in out) == (0, True)


def _read_terminal(ours: int, seen: bytearray) -> None:
    with suppress(OSError):  # how a terminal on Linux says that its last writer has gone
        while data := os.read(ours, 4096):
            seen.extend(data)


def test_a_tasks_log_is_shown_from_a_level_on_and_followed_to_its_end(client: Client, engine: Engine) -> None:
    id_ = client.submit()["id"]
    with engine.begin() as connection:
        worker = uuid4()
        lifecycle.register_worker(connection, worker, "w", [QUEUE], {})
        lifecycle.dispatch(connection, QUEUE, "async", 10, 60)
        lifecycle.claim(connection, worker, QUEUE, "async", [UUID(id_)], ["http.request"], 1)
        said = [("info", "fetched\x1b[31m", {"size": 3}), ("error", "broke", {"exception": "Traceback: no"})]
        lines = [{"time": "2026-01-01T00:00:00Z", "level": level, "message": message, "fields": fields} for level, message, fields in said]
        tasklogs.write(connection, json.dumps([{"id": id_, "fence": 1, "dropped": 2, "lines": lines}]))
    out, err = client("tasks", "logs", id_)
    first, last = out.splitlines()
    assert first.endswith("info     fetched\\x1b[31m size=3")
    assert last.endswith("error    broke Traceback: no")
    assert "2 lines are not kept" in err
    assert [json.loads(line)["message"] for line in client("tasks", "logs", id_, "--level", "warning", "--json")[0].splitlines()] == ["broke"]
    following = client.start("tasks", "logs", id_, "--follow", "--json")
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["fields"] == {"size": 3}
    with engine.begin() as connection:
        lifecycle.finish(connection, [Finished(UUID(id_), 1, "succeeded", result="{}")], 3)
    # Not by communicate(), which passes over what was read ahead.
    rest = following.stdout.read()
    assert (following.wait(60), [json.loads(line)["level"] for line in rest.splitlines()]) == (0, ["error"])
    assert "There is no task" in client("tasks", "logs", "not-an-id", code=1)[1]
