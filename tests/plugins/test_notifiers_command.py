"""`taskyard notifiers test` and `taskyard config check`: an operator knows that a route works before the first failure at night."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Receiver

from tests.core.test_cli import Cli

from .conftest import Answer, Site
from .mail import LOGIN, mail_server, silent_server

SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
Start = Callable[..., Site]

HOOK = """
[plugins.webhook]
allow_private_networks = true

[[routes]]
name = "audit"
notifier = "log"
events = ["task.succeeded"]

[[routes]]
name = "the hook"
notifier = "webhook"
events = ["task.failed", "task.expired"]
types = ["report.*", "page.make"]
queues = ["slow"]
tags = ["vip"]
[routes.options]
url = "{url}"
secret = "${{env:HOOK_SECRET}}"
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def _configure(cli: Cli, text: str) -> None:
    (cli.folder / "taskyard.toml").write_text(text)


def test_a_test_event_arrives_and_is_what_the_route_wants(cli: Cli, serve_site: Start) -> None:
    site = serve_site({"/": Answer(204)})
    _configure(cli, HOOK.format(url=site.url()))
    run = cli("notifiers", "test", "the hook", HOOK_SECRET=SECRET)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "route 'the hook' to 'webhook': task.failed is delivered: HTTP 204 No Content\n"
    (asked,) = site.asked
    event = Receiver(SECRET).verify(asked.body, asked.headers)
    assert (event["type"], event["data"]["status"], event["data"]["error"]["code"]) == ("task.failed", "failed", "test")
    assert event["data"]["task"] == {"type": "page.make", "queue": "slow", "priority": 5, "tags": ["vip"], "status": "failed"}
    assert asked.headers["webhook-id"].startswith("dlv_test_")


def test_a_digest_can_be_tried_too(cli: Cli, serve_site: Start) -> None:
    site = serve_site({"/": Answer(204)})
    _configure(cli, HOOK.format(url=site.url()))
    assert cli("notifiers", "test", "the hook", "--event", "digest", HOOK_SECRET=SECRET).returncode == 0
    data = json.loads(site.asked[0].body)["data"]
    assert (data["count"], [item["event"] for item in data["counts"]]) == (2, ["task.failed", "task.expired"])


def test_a_refusal_is_told_with_its_cause_and_exit_1(cli: Cli, serve_site: Start) -> None:
    site = serve_site({"/": Answer(503, {"retry-after": "7"}, b"our inner secrets")})
    _configure(cli, HOOK.format(url=site.url()))
    run = cli("notifiers", "test", "the hook", "--event", "task.expired", HOOK_SECRET=SECRET)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == (
        "route 'the hook' to 'webhook': task.expired is not delivered: HTTP 503 Service Unavailable. By this answer a delivery would be tried again.\n"
    )
    told = json.loads(cli("notifiers", "test", "the hook", "--json", HOOK_SECRET=SECRET).stdout)
    assert told == {
        **{"route": "the hook", "notifier": "webhook", "event": "task.failed"},
        **{"status": "retry", "detail": "HTTP 503 Service Unavailable", "delay": 7.0},
    }


def test_a_mistyped_route_or_event_is_wrong_use_and_told_the_near_one(cli: Cli) -> None:
    _configure(cli, HOOK.format(url="https://hooks.example.com/"))
    for arguments, near in ((["the hok"], "'the hook'"), (["audit", "--event", "task.fialed"], "'task.failed'")):
        run = cli("notifiers", "test", *arguments, HOOK_SECRET=SECRET)
        assert run.returncode == 2
        assert f"Did you mean {near}?" in " ".join(run.stderr.replace("│", " ").split())


def test_another_routes_mistake_does_not_keep_one_from_being_tried(cli: Cli) -> None:
    _configure(cli, HOOK.format(url="ftp://nowhere"))
    run = cli("notifiers", "test", "audit", HOOK_SECRET=SECRET)
    assert run.returncode == 0
    assert "task.succeeded" in run.stderr, "the notifier `log` says it on standard error"
    broken = cli("notifiers", "test", "the hook", HOOK_SECRET=SECRET)
    assert broken.returncode == 1
    assert broken.stderr.startswith("taskyard.toml, line 18: route 'the hook': options.url: URL scheme should be")


MAIL = """
[plugins.email]
host = "localhost"
port = {port}
security = "{security}"
sender = "taskyard@example.com"
username = "{user}"
password = "${{env:MAIL_PASSWORD}}"
ca_file = "{ca_file}"

[deliveries]
timeout = 1

[[routes]]
name = "mail"
notifier = "email"
events = ["task.failed"]
options = {{ to = "team@example.com" }}
"""


def test_a_mail_is_tried_with_its_login(cli: Cli, tmp_path: Path) -> None:
    with mail_server(tmp_path, "starttls") as server:
        _configure(cli, MAIL.format(port=server.port, security="starttls", user=LOGIN[0], ca_file=server.ca_file).replace("timeout = 1", "timeout = 30"))
        good = cli("notifiers", "test", "mail", MAIL_PASSWORD=LOGIN[1])
        bad = cli("notifiers", "test", "mail", MAIL_PASSWORD="wrong-horse")
        assert (good.returncode, len(server.envelopes)) == (0, 1), good.stderr
    assert bad.returncode == 1
    assert "refuses the login: 535" in bad.stderr
    assert "kept as dead" in bad.stderr
    assert "wrong-horse" not in bad.stderr


def test_a_receiver_that_hangs_ends_at_the_deliveries_timeout(cli: Cli) -> None:
    with silent_server() as port:
        _configure(cli, MAIL.format(port=port, security="tls", user="a", ca_file=""))
        text = (cli.folder / "taskyard.toml").read_text().replace('ca_file = ""\n', "")
        _configure(cli, text)
        run = cli("notifiers", "test", "mail", MAIL_PASSWORD="wrong-horse")
    assert run.returncode == 1
    assert "is not delivered: TimeoutError" in run.stderr


def test_a_plugin_that_has_failed_is_named(cli: Cli) -> None:
    _configure(cli, HOOK.format(url="https://x.example.com/").replace("allow_private_networks", "allow_private"))
    run = cli("notifiers", "test", "the hook", HOOK_SECRET=SECRET)
    assert run.returncode == 1
    assert "Failed: webhook: ConfigurationError: plugins.webhook.allow_private: no such setting." in run.stderr


# --- config check ---


def test_config_check_names_the_line_of_every_mistake_in_plugins_and_routes(cli: Cli) -> None:
    _configure(
        cli,
        """\
[plugins.http]
allow_private = true

[[routes]]
name = "a"
notifier = "webhok"
events = ["task.failed"]

[[routes]]
name = "b"
notifier = "webhook"
events = ["task.failed"]
[routes.options]
url = "https://hooks.example.com/"
secret = "whsec_short"

[[routes]]
name = "a"
notifier = "email"
events = ["task.failed"]

[routes.options]
text = '''
[x]
name = 1
{{ event.typ }}
'''
to = "nobody"
""",
    )
    run = cli("config", "check")
    assert run.returncode == 1
    lines = run.stderr.splitlines()
    expected = [
        "taskyard.toml, line 2: plugin 'http' (taskyard-http): ConfigurationError: plugins.http.allow_private: no such setting. Did you mean",
        "taskyard.toml, line 15: route 'b': options.secret: expected whsec_",
        "taskyard.toml, line 18: route 'a': the name is used twice",
        "taskyard.toml, line 28: route 'a': options.to.0: expected an address",
        "taskyard.toml, line 23: route 'a': options.text: line 3: event has no 'typ'. Did you mean 'type'?",
    ]
    # The missing notifier may be the failed plugin's.
    assert lines[1].startswith("taskyard.toml, line 4: route 'a' to 'webhok': no plugin that works brings its notifier")
    assert [line.startswith(start) for line, start in zip([lines[0], *lines[2:]], expected, strict=True)] == [True] * 5, run.stderr


def test_config_check_names_every_secret_that_is_missing_with_its_line(cli: Cli) -> None:
    _configure(cli, HOOK.format(url="https://hooks.example.com/${{file:nowhere}}").replace("{{", "{").replace("}}", "}"))
    run = cli("config", "check")
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        "taskyard.toml, line 18: routes.1.options.url: can't read nowhere: no such file or directory",
        "taskyard.toml, line 19: routes.1.options.secret: the environment variable HOOK_SECRET is not set",
    ]


def test_a_service_refuses_to_start_with_a_bad_route_and_says_where_it_is(cli: Cli) -> None:
    _configure(cli, HOOK.format(url="ftp://nowhere"))
    run = cli("serve", "--port", "0", HOOK_SECRET=SECRET, DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert run.returncode == 1
    assert run.stderr.startswith("taskyard.toml, line 18: route 'the hook': options.url: URL scheme should be 'http' or 'https'")


def test_a_route_from_the_environment_is_named_by_its_variable(cli: Cli) -> None:
    routes = json.dumps([{"name": "a", "notifier": "log", "events": ["task.failed"], "options": {"levl": "info"}}])
    run = cli("config", "check", TASKYARD_ROUTES=routes)
    assert run.stderr == "environment: route 'a': options.levl: no such setting. Did you mean 'level'?\n"


CHAT = """
[[routes]]
name = "chat"
notifier = "apprise"
events = ["task.failed"]
options = { url = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", title = "{{ task.type }}" }

[[routes]]
name = "hook"
notifier = "webhook"
events = ["task.failed"]
options = { url = "https://hooks.example.com/", secrets = ["SECRET"] }

[[routes]]
name = "broken"
notifier = "apprise"
events = ["task.failed"]
options = { url = "slack://TIiajkdnlazkcOXrIdevi7FQ" }
"""


def test_config_show_masks_what_a_notifier_holds_as_a_secret(cli: Cli) -> None:
    _configure(cli, CHAT.replace("SECRET", SECRET))
    run = cli("config", "show", "--json")
    assert run.returncode == 0, run.stderr
    options = {route["name"]: route["options"] for route in json.loads(run.stdout)["routes"]}
    assert options["chat"] == {"url": "***", "title": "{{ task.type }}"}
    assert options["hook"]["url"] == "https://hooks.example.com/"
    assert options["broken"] == {"url": "***"}
    for shown in (run.stdout, cli("config", "show").stdout):
        assert "TIiajkdnlazkcOXrIdevi7FQ" not in shown
        assert SECRET not in shown
