"""The command line on machines as people have them: broken packages, narrow terminals, proxies, files from other editors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from taskyard.client.exchange import http_options
from taskyard.errors import ConfigurationError
from taskyard.network import open_directly
from taskyard.settings import load_settings

Run = subprocess.CompletedProcess[bytes]


def taskyard(folder: Path, *arguments: str, **environment: str) -> Run:
    """Run `taskyard` in a folder, with no settings but those given."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run([sys.executable, "-m", "taskyard", *arguments], cwd=folder, env=inherited | environment, capture_output=True, timeout=60)


def plugins_of(run: Run) -> list[dict[str, str]]:
    """What `taskyard plugins list --json` wrote."""
    found: list[dict[str, str]] = json.loads(run.stdout)["items"]
    return found


# --- broken distributions ---


def install(folder: Path, name: str, entry_points: bytes, metadata: bytes | None) -> Path:
    """A distribution's folder as installers leave it; without METADATA as an interrupted uninstall does."""
    made = folder / f"{name}-1.0.dist-info"
    made.mkdir()
    (made / "entry_points.txt").write_bytes(entry_points)
    if metadata is not None:
        (made / "METADATA").write_bytes(metadata)
    return made


WHOLE = b"Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"
PLUGIN = b"[taskyard.plugins]\nbroken-one = json\n"


@pytest.mark.parametrize("metadata", [None, b"", b"\xff\xfe", b"Metadata-Version: 2.1\nName: broken\n"], ids=["missing", "empty", "no text", "no version"])
def test_a_plugin_whose_distribution_lost_its_metadata_has_failed_and_the_others_work(tmp_path: Path, metadata: bytes | None) -> None:
    place = install(tmp_path, "broken", PLUGIN, metadata)
    run = taskyard(tmp_path, "plugins", "list", "--json", PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    found = {plugin["name"]: plugin for plugin in plugins_of(run)}
    assert found["broken-one"]["state"] == "failed"
    assert str(place) in found["broken-one"]["reason"]
    assert found["demo"]["state"] == "enabled"


@pytest.mark.parametrize("entry_points", [b"\xff\xfe", b"[taskyard.plugins]\nno equals sign here\n"], ids=["no text", "no entry points"])
def test_a_distribution_whose_entry_points_cannot_be_read_is_ignored_with_a_warning(tmp_path: Path, entry_points: bytes) -> None:
    place = install(tmp_path, "broken", entry_points, WHOLE)
    run = taskyard(tmp_path, "plugins", "list", "--json", PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "demo" in {plugin["name"] for plugin in plugins_of(run)}
    assert str(place / "entry_points.txt").encode() in run.stderr
    assert b"Traceback" not in run.stderr


def test_a_role_starts_beside_a_distribution_that_celery_could_not_read_either(tmp_path: Path) -> None:
    install(tmp_path, "broken", b"\xff\xfe", WHOLE)
    run = taskyard(tmp_path, "dispatcher", PYTHONPATH=str(tmp_path), TASKYARD_LOG__FORMAT="json")
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert lines[0]["event"] == "distribution.ignored"
    assert lines[-1]["error"].startswith("database.url is not set"), "it came as far as its settings"


def test_what_a_broken_distribution_names_does_not_stand_in_the_way_of_a_whole_one(tmp_path: Path) -> None:
    install(tmp_path, "broken", b"[taskyard.plugins]\ndemo = json\n", None)
    run = taskyard(tmp_path, "plugins", "list", "--json", PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert {plugin["name"]: plugin for plugin in plugins_of(run)}["demo"]["state"] == "enabled"


# --- terminals ---


@pytest.mark.parametrize("charset", ["latin-1", "ascii", "cp1252", "iso-8859-15"])
def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path, charset: str) -> None:
    (tmp_path / "taskyard.toml").write_text('[api]\nroot_path = "/日本é"\n', encoding="utf-8")
    run = taskyard(tmp_path, "config", "show", PYTHONIOENCODING=charset)
    assert (run.returncode, run.stderr) == (0, b"")
    assert r"\u65e5\u672c" in run.stdout.decode(charset)


@pytest.mark.parametrize("charset", ["latin-1", "ascii"])
def test_help_and_errors_are_written_to_any_terminal(tmp_path: Path, charset: str) -> None:
    for arguments in (["--help"], ["tasks", "--help"], ["config", "check"], ["tasks", "show", "日本"]):
        run = taskyard(tmp_path, *arguments, PYTHONIOENCODING=charset, TASKYARD_API__PORT="日本", TASKYARD_URL="http://127.0.0.1:9")
        assert b"Traceback" not in run.stderr, run.stderr


# --- proxies and certificates ---

#: Nobody listens there.
PROXY = "http://127.0.0.1:9"


class Answer(BaseHTTPRequestHandler):
    """Says yes to everything, and that it was asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a service on this machine that answers everything."""
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_proxy_of_the_environment_comes_between_a_command_and_this_machine(tmp_path: Path, port: int) -> None:
    variables = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), PROXY)
    assert taskyard(tmp_path, "health", "web", TASKYARD_API__PORT=str(port), **variables).returncode == 0
    assert Answer.asked.pop() == "/health/ready"
    for host in ("127.0.0.1", "localhost"):
        taskyard(tmp_path, "tasks", "list", "--url", f"http://{host}:{port}", **variables)
        assert Answer.asked.pop().startswith("/api/v1/tasks")


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.2", False), ("[::1]", False), ("tasks.example.com", True), ("10.0.0.1", True)])
def test_the_client_uses_the_proxies_of_the_environment_for_all_but_this_machine(host: str, expected: bool) -> None:
    assert http_options(f"http://{host}:8000", "", 1)["trust_env"] is expected


def test_taskyard_up_looks_at_its_own_service_past_every_proxy(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    with open_directly(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks5://user:s3cret@127.0.0.1:9", "httpx2[socks]"),
        ("https_proxy", "gopher://user:s3cret@127.0.0.1:9", "expected the address of a proxy"),
        ("HTTP_PROXY", "::s3cret", "expected the address of a proxy"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "no such file"),
    ],
)
def test_an_environment_that_http_cannot_use_is_a_sentence_that_names_the_variable(tmp_path: Path, variable: str, value: str, said: str) -> None:
    run = taskyard(tmp_path, "tasks", "list", "--url", "http://tasks.example.com", **{variable: value})
    message = run.stderr.decode()
    assert run.returncode == 1
    assert message.startswith(variable), message
    assert said in message
    assert len(message.splitlines()) == 1
    assert "s3cret" not in message


def test_a_certificate_file_without_certificates_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing\n")
    run = taskyard(tmp_path, "tasks", "list", "--url", "https://tasks.example.com", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert (run.returncode, run.stderr.decode()) == (1, f"SSL_CERT_FILE={tmp_path}/ca.pem: can't load certificates: no certificates in it\n")


# --- files ---

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "SECRET", "USER_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def url() -> str:
    """The database's URL as the settings have it."""
    found = load_settings().database.url
    assert found is not None
    return found.get_secret_value()


def test_files_from_windows_are_read(here: Path) -> None:
    (here / "secret").write_bytes(BOM + b"p1\r\n")
    (here / "taskyard.toml").write_bytes(BOM + b'[api]\r\nport = 8123\r\n\r\n[database]\r\nurl = "postgresql://u:${file:secret}@h/d"\r\n')
    (here / ".env").write_bytes(BOM + b"TASKYARD_API__HOST=::1\r\nTASKYARD_LOG__LEVEL=debug\r\n")
    settings = load_settings()
    assert (settings.api.port, settings.api.host, settings.log.level) == (8123, "::1", "debug")
    assert url() == "postgresql://u:p1@h/d"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("DATABASE_URL='postgresql://u:a${x}b@h/d'", "postgresql://u:a${x}b@h/d"),
        ("DATABASE_URL=postgresql://u:a$xb@h/d", "postgresql://u:a$xb@h/d"),
        ("SECRET=s\nDATABASE_URL=postgresql://u:${SECRET}@h/d", "postgresql://u:s@h/d"),
        ("SECRET='${x}'\nDATABASE_URL=postgresql://u:${SECRET}@h/d", "postgresql://u:${x}@h/d"),
        ('DATABASE_URL="postgresql://u:${SECRET:-s}@h/d"', "postgresql://u:s@h/d"),
        ("OTHER=${x}\nDATABASE_URL=postgresql://u:s@h/d", "postgresql://u:s@h/d"),
    ],
)
def test_a_password_in_the_env_file_is_what_is_written_there(here: Path, line: str, expected: str) -> None:
    (here / ".env").write_text(line + "\n")
    assert url() == expected


@pytest.mark.parametrize("value", ["postgresql://u:a${x}b@h/d", '"postgresql://u:a${x}b@h/d"', "postgresql://u:${SECRET}${x}@h/d"])
def test_a_variable_that_is_not_set_is_refused_and_never_left_out_of_a_password(here: Path, value: str) -> None:
    (here / ".env").write_text(f"\nSECRET=s\nDATABASE_URL={value}\n")
    with pytest.raises(ConfigurationError, match=r"^\.env, line 3: DATABASE_URL: \$\{x\} stands for the variable 'x', which is not set\. .* single quotes"):
        load_settings()


def test_nothing_listens_where_these_tests_send_their_proxies() -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 9)) != 0
