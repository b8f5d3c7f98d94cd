"""The `taskyard` command as people and programs see it: run as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from taskyard.cli import CORE
from taskyard.cli.output import local_time
from taskyard.validation import parse_instant

Run = subprocess.CompletedProcess[str]


class Cli:
    """Runs `taskyard` in an empty folder, with no settings but those given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Run:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        command = [sys.executable, "-m", "taskyard", *arguments]
        return subprocess.run(command, cwd=self.folder, env=inherited | environment, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_help_lists_every_command_with_what_it_does(cli: Cli) -> None:
    run = cli("--help", COLUMNS="200")
    assert run.returncode == 0
    for name in [*CORE, "serve", "worker", "dispatcher", "db"]:
        assert f" {name} " in run.stdout
    assert "Submit a task." in run.stdout


def test_help_imports_no_command(cli: Cli) -> None:
    run = subprocess.run([sys.executable, "-X", "importtime", "-m", "taskyard", "--help"], capture_output=True, text=True, cwd=cli.folder)
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "taskyard.cli" in imported
    assert not imported & {"celery", "fastapi", "sqlalchemy", "alembic", "taskyard.cli.tasks"}


def test_without_arguments_it_shows_its_help(cli: Cli) -> None:
    run = cli()
    assert (run.returncode, "Commands" in run.stdout + run.stderr) == (2, True)


def test_version_is_one_line_for_programs(cli: Cli) -> None:
    assert cli("--version").stdout == "taskyard 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(("tsks",), "tasks"), (("serv",), "serve"), (("tasks", "lst"), "list"), (("tasks", "list", "--statu", "x"), "--status")],
)
def test_a_mistyped_command_or_option_is_told_the_near_one(cli: Cli, arguments: tuple[str, ...], near: str) -> None:
    run = cli(*arguments)
    assert run.returncode == 2
    assert near in run.stderr.partition("Error")[2]


def test_a_command_whose_extra_is_missing_names_the_extra(cli: Cli) -> None:
    code = "import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve']; import taskyard.cli; taskyard.cli.main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cli.folder)
    assert (run.returncode, run.stderr) == (1, "This command needs the extra 'api': pip install 'taskyard[api]'\n")


def test_an_error_is_a_sentence_and_no_trace(cli: Cli) -> None:
    run = cli("config", "show", TASKYARD_API__PORT="x")
    assert run.returncode == 1
    assert run.stderr == "environment: TASKYARD_API__PORT: input should be a valid integer, unable to parse string as an integer\n"


def test_where_nothing_answers_the_way_out_is_told(cli: Cli) -> None:
    run = cli("tasks", "list", "--url", "http://127.0.0.1:1")
    assert run.returncode == 1
    assert run.stderr.startswith("Nothing answers at http://127.0.0.1:1")
    assert "taskyard up" in run.stderr
    assert cli("tasks", "list", TASKYARD_URL="nonsense").stderr.startswith("--url nonsense: expected an address")


@pytest.fixture
def stranger() -> Iterator[str]:
    """An HTTP service that is not Taskyard."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_database_that_can_not_be_reached_is_told_with_host_and_port_and_without_the_password(cli: Cli) -> None:
    run = cli("db", "current", DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x")
    assert run.returncode == 1
    assert "Host 127.0.0.1, port 1: " in run.stderr
    assert "refused" in run.stderr
    assert "hunter2" not in run.stderr


def test_another_service_at_the_address_is_told(cli: Cli, stranger: str) -> None:
    run = cli("tasks", "show", "../x", "--url", stranger)
    assert run.returncode == 1
    assert "Is this its address?" in run.stderr


@pytest.mark.parametrize("payload", ["{", "@missing.json"])
def test_a_payload_that_can_not_be_read_is_wrong_use(cli: Cli, payload: str) -> None:
    run = cli("submit", "http.request", "--payload", payload)
    assert run.returncode == 2
    assert "--payload" in run.stderr


def test_config_show_masks_secrets_and_tells_where_each_came_from(cli: Cli) -> None:
    (cli.folder / "taskyard.toml").write_text('[plugins.http]\napi_token = "hunter2"\n')
    environment = {"DATABASE_URL": "postgresql://me:hunter2@db/jobs", "CELERY_RESULT_BACKEND": "redis://:hunter2@h"}
    run = cli("config", "show", **environment)
    assert run.returncode == 0
    assert "hunter2" not in run.stdout
    lines = {line.split()[0]: line.split()[1:] for line in run.stdout.splitlines()}
    assert lines["database.url"] == ["postgresql://me:***@db/jobs", "environment:", "DATABASE_URL"]
    assert lines["api.port"] == ["8000", "default"]
    shown = json.loads(cli("config", "show", "--json", **environment).stdout)
    assert (shown["database"]["url"], shown["plugins"]["http"]) == ("postgresql://me:***@db/jobs", {"api_token": "***"})
    assert (shown["from"]["database.url"], shown["from"]["api.port"]) == ("environment: DATABASE_URL", "default")
    assert shown["from"]["plugins.http"].startswith("taskyard.toml, line 2")


@pytest.mark.parametrize(("zone", "shown"), [("UTC", "2030-01-31T12:00:00+00:00"), ("Asia/Kolkata", "2030-01-31T17:30:00+05:30")])
def test_a_printed_time_has_its_offset_and_is_a_time_that_options_take(monkeypatch: pytest.MonkeyPatch, zone: str, shown: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert local_time("2030-01-31T12:00:00.123456Z") == shown
    finally:
        monkeypatch.undo()
        time.tzset()
    assert parse_instant(shown) == datetime(2030, 1, 31, 12, tzinfo=UTC)


def test_config_show_masks_known_secrets_anywhere_and_options_that_no_model_has_read(cli: Cli) -> None:
    (cli.folder / "taskyard.toml").write_text('[plugins.http]\nhook = "https://chat/T1JJ3T3L2"\n[plugins.gone]\nhook = "https://chat/T1JJ3T3L2"\n')
    environment = {"DATABASE_URL": "postgresql://me:hunter2hunter2@db/jobs", "TASKYARD_API__ROOT_PATH": "/hunter2hunter2"}
    for run in (cli("config", "show", **environment), cli("config", "show", "--json", **environment)):
        assert run.returncode == 0
        assert "hunter2" not in run.stdout
        assert "T1JJ3T3L2" not in run.stdout
    shown = json.loads(run.stdout)
    assert (shown["api"]["root_path"], shown["plugins"]["gone"], shown["plugins"]["disabled"]) == ("/***", {"hook": "***"}, [])


def test_a_piped_table_has_no_blanks_at_the_end_of_its_lines(cli: Cli) -> None:
    lines = cli("config", "show", TASKYARD_API__ROOT_PATH="/" + "x" * 300).stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert any("x" * 300 in line for line in lines), "nothing is cut"


def test_config_check_tells_every_problem(cli: Cli) -> None:
    assert (cli("config", "check").stdout, cli("config", "check").returncode) == ("The configuration is fine.\n", 0)
    config = cli.folder / "taskyard.toml"
    config.write_text("[api]\nprt = 1\n[log]\nlevel = 'loud'")
    run = cli("config", "check")
    assert run.returncode == 1
    assert "taskyard.toml, line 2: api.prt: no such setting. Did you mean 'port'?" in run.stderr
    assert "taskyard.toml, line 4: log.level: input should be" in run.stderr


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("[database]\nurl = 'mysql://x'", "database.url: Taskyard needs PostgreSQL (postgresql://...), not mysql://"),
        ("[database]\nurl = 'postgresql://u:hunter2@h:notaport/x'", "database.url: expected a URL such as postgresql://"),
        ("[broker]\nurl = 'amp://u:hunter2@h'", "broker.url: No such transport: amp. Did you mean amqp?"),
        ("[broker]\nurl = 'amqp://u:hun:ter2@h:x'", "broker.url: expected a URL such as amqp://"),
        ("[plugins]\ndisabled = ['htp']", "plugins.disabled: no plugin 'htp' is installed. Did you mean 'http'?"),
        ("[plugins.http]\nallow_private = true", "plugins.http.allow_private: no such setting. Did you mean 'allow_private_networks'?"),
        ("[deliveries]\nsubscriptions = ['apprise']", "taskyard.toml, line 2: deliveries.subscriptions: the notifier 'apprise' is for operators only"),
        ("[[routes]]\nname = 'a'\nnotifier = 'webhok'\nevents = ['task.failed']", "no plugin brings the notifier 'webhok'. Did you mean 'webhook'?"),
        ("[[routes]]\nname = 'a'\nnotifier = 'webhook'\nevents = ['task.failed']", "route 'a': options.url: field required"),
        (
            "[[routes]]\nname = 'a'\nnotifier = 'webhook'\nevents = ['task.failed']\noptions = { url = 'ftp://x', secret = 'x' }",
            "options.url: URL scheme should be 'http' or 'https'\ntaskyard.toml, line 5: route 'a': options.secret: expected whsec_",
        ),
    ],
)
def test_config_check_goes_through_urls_plugins_and_routes(cli: Cli, config: str, sentence: str) -> None:
    (cli.folder / "taskyard.toml").write_text(config)
    run = cli("config", "check", "--json")
    assert run.returncode == 1
    assert sentence in "\n".join(json.loads(run.stdout)["problems"])
    assert "hunter2" not in run.stdout
    assert run.stderr == ""


def test_plugins_list_shows_what_is_installed_and_why_one_failed(cli: Cli) -> None:
    run = cli("plugins", "list", "--json", TASKYARD_PLUGINS__HTTP__NONSENSE="1", TASKYARD_PLUGINS__DISABLED="process")
    plugins = {plugin["name"]: plugin for plugin in json.loads(run.stdout)["items"]}
    assert plugins["log"].items() >= {"state": "enabled", "distribution": "taskyard-log", "notifiers": ["log"], "reason": None}.items()
    assert plugins["process"]["state"] == "disabled"
    assert plugins["http"]["state"] == "failed"
    assert "plugins.http.nonsense" in plugins["http"]["reason"]
    table = cli("plugins", "list").stdout
    assert table.split()[:3] == ["NAME", "VERSION", "DISTRIBUTION"]
    assert "http.request" in table


def test_plugins_check_judges_one_or_all(cli: Cli) -> None:
    assert cli("plugins", "check", "log").stdout == "log: fine\n"
    run = cli("plugins", "check", "lgo")
    assert (run.returncode, run.stderr) == (1, "lgo: No plugin 'lgo' is installed. Did you mean 'log'?\n")
    assert {item["name"] for item in json.loads(cli("plugins", "check", "--json").stdout)["items"]} >= {"http", "log"}
