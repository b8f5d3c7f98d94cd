"""The plugin ``apprise``: a JSON endpoint on loopback gets the message, failures are told with their cause and without the URL's secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from taskyard import TaskFailed, TaskInfo
from taskyard.errors import ConfigurationError, InvalidInput
from taskyard.plugins import load_plugins_for
from taskyard.settings import DeliverySettings, Settings
from taskyard.submission import prepare
from taskyard.subscriptions import open_to_clients
from taskyard.testing import NotifierRun, assert_plugin_conforms, make_event, run_notifier
from taskyard_apprise import AppriseNotifier, AppriseOptions
from taskyard_worker.runs import prepare_delivery

from .conftest import Answer, Site

# Apprise loads all its services, and what they are made of.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TASK = TaskInfo("acme", "report.make", "slow", 7, ("vip",), "failed")
Start = Callable[..., Site]


def _send(url: str, typed: str = "Höhe", type_: str = "task.failed", **options: Any) -> NotifierRun:
    event = make_event(type_, data={"error": {"code": "timeout", "message": typed}}, task=TASK)
    return run_notifier(AppriseNotifier, {"url": url, **options}, event)


def _got(site: Site) -> dict[str, Any]:
    (asked,) = site.asked
    got: dict[str, Any] = json.loads(asked.body)
    return got


@pytest.fixture
def site(serve_site: Start) -> Site:
    return serve_site({"/token-of-the-team/": Answer(200)})


def _url(site: Site, query: str = "") -> str:
    return f"json://user:hunter22@127.0.0.1:{site.port}/token-of-the-team/{query}"


def test_an_event_reaches_a_json_endpoint(site: Site) -> None:
    run = _send(_url(site))
    got = _got(site)
    assert (run.status, run.detail) == ("delivered", "sent by JSON")
    assert (got["title"], got["type"]) == ("task.failed: report.make", "failure")
    assert "error.code: timeout\nerror.message: Höhe\n" in got["message"]


def test_a_message_of_ones_own_is_sent(site: Site) -> None:
    _send(_url(site), title="{{ task.type }}", text="{{ data.error.code }} in {{ task.queue }}")
    assert (_got(site)["title"], _got(site)["message"]) == ("report.make", "timeout in slow")


@pytest.mark.parametrize(
    ("options", "query", "message"),
    [
        ({"markdown": "**{{ data.error.message }}**"}, "?format=html", "<strong>&lt;b&gt; *x* [a](b)</strong>"),
        ({"html": "<p>{{ data.error.message }}</p>"}, "?format=html", "<p>&lt;b&gt; *x* [a](b)</p>"),
        ({"text": "{{ data.error.message }}"}, "?format=html", "&lt;b&gt; *x* [a](b)"),
        ({"text": "{{ data.error.message }}"}, "?format=text", "<b> *x* [a](b)"),
    ],
    ids=["markdown", "html", "text as html", "text"],
)
def test_what_a_user_typed_stays_what_it_was_in_the_services_format(site: Site, options: dict[str, str], query: str, message: str) -> None:
    assert _send(_url(site, query), "<b> *x* [a](b)", **options).status == "delivered"
    told = _got(site)["message"].replace("&nbsp;", " ").replace("&emsp;", " ")
    assert message in told
    assert "<b>" not in told or "format=text" in query


def test_a_refusal_means_another_try_with_its_cause_and_without_secrets(serve_site: Start) -> None:
    site = serve_site({"/token-of-the-team/": Answer(500, {}, b"our inner")})
    run = _send(_url(site))
    assert run.status == "retry"
    assert run.detail.startswith("JSON: ")
    assert "500" in run.detail
    for secret in ("hunter22", "token-of-the-team", "our inner"):
        assert secret not in run.detail


def test_a_service_that_is_away_means_another_try() -> None:
    run = _send("json://127.0.0.1:1/token-of-the-team")
    assert run.status == "retry"
    assert "onnection error" in run.detail


def test_a_redirect_is_not_followed(serve_site: Start) -> None:
    site = serve_site({"/token-of-the-team/": Answer(307, {"location": "/elsewhere"}), "/elsewhere": Answer(200)})
    assert _send(_url(site)).status == "retry"
    assert len(site.asked) == 1


def test_a_service_that_hangs_ends_at_its_timeout(serve_site: Start) -> None:
    never = threading.Event()
    site = serve_site({"/token-of-the-team/": Answer(wait_for=never)})
    run = _send(_url(site, "?rto=0.2"))
    never.set()
    assert run.status == "retry"


@pytest.mark.parametrize("url", ["", "nonsense", "slack://", "unknown://host-of-mine/x"])
def test_a_url_that_apprise_does_not_know_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="Apprise makes nothing of this URL") as caught:
        AppriseOptions.model_validate({"url": url})
    assert caught.value.errors(include_input=False)[0]["loc"] == ("url",)


def test_the_url_is_masked_where_options_are_shown() -> None:
    options = AppriseOptions.model_validate({"url": "json://user:hunter22@127.0.0.1/token-of-the-team"})
    assert "token-of-the-team" not in repr(options)
    assert "token-of-the-team" not in json.dumps(options.model_dump(mode="json"))


def test_one_message_has_one_format() -> None:
    with pytest.raises(ValidationError, match="expected one of text, markdown and html"):
        AppriseOptions.model_validate({"url": "json://127.0.0.1/", "text": "a", "html": "b"})


def test_whoever_has_no_route_to_it_does_not_load_apprise() -> None:
    said = subprocess.run([sys.executable, "-c", "import sys, taskyard_apprise; print('apprise' in sys.modules)"], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


@pytest.mark.parametrize("names", [("apprise",), ("webhook", "apprise")])
def test_no_mistake_in_the_configuration_opens_it_to_clients(names: tuple[str, ...]) -> None:
    settings = Settings(deliveries=DeliverySettings(subscriptions=names))
    with pytest.raises(ConfigurationError, match=r"deliveries\.subscriptions: the notifier 'apprise' is for operators only"):
        load_plugins_for(settings)
    registry = load_plugins_for(Settings())
    assert open_to_clients(registry, names) == [name for name in names if name != "apprise"]
    wish = {"type": "demo.echo", "payload": {"text": "x"}, "notify": [{"notifier": "apprise", "options": {"url": "json://127.0.0.1"}}]}
    with pytest.raises(InvalidInput) as refused:
        prepare(registry, wish, namespace="default", notifiers=names)
    assert [pointer for pointer, _ in refused.value.problems] == ["/notify/0/notifier"]
    job = {"route": "notify/0", "notifier": "apprise", "event": "task.failed", "options": {"url": "json://127.0.0.1"}}
    with pytest.raises(TaskFailed, match="may not name the notifier 'apprise'"):
        prepare_delivery(job, registry, settings)


def test_the_plugin_conforms() -> None:
    assert_plugin_conforms("apprise")
