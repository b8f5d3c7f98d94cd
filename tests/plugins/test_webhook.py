"""The plugin ``webhook``: what receivers get and can verify, and what their answers mean."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook as Receiver
from standardwebhooks import WebhookVerificationError

from taskyard import TaskInfo
from taskyard.testing import NotifierRun, make_event, run_notifier
from taskyard_webhook import Config, Webhook, WebhookOptions

from .conftest import Answer, Site

LOCAL = Config(allow_private_networks=True)
SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
Start = Callable[..., Site]


def _send(url: str, config: Config | None = LOCAL, **options: Any) -> NotifierRun:
    event = make_event("task.failed", data={"error": {"code": "höhe"}}, task=TaskInfo("acme", "report.make", "slow", 7, ("vip",), "failed"))
    return run_notifier(Webhook, {"url": url, "secret": SECRET}, event, config=config, **options)


def test_the_receiver_gets_a_cloudevent_that_it_can_verify(serve_site: Start) -> None:
    site = serve_site({"/hook": Answer(204)})
    run = _send(site.url("/hook"), delivery_id="dlv_7")
    (asked,) = site.asked
    event = Receiver(SECRET).verify(asked.body, asked.headers)
    assert (run.status, run.detail) == ("delivered", "HTTP 204 No Content")
    assert (asked.method, asked.headers["content-type"]) == ("POST", "application/cloudevents+json; charset=utf-8")
    assert asked.headers["webhook-id"] == "dlv_7"
    assert (event["specversion"], event["type"], event["source"]) == ("1.0", "task.failed", "/taskyard/acme")
    assert event["data"]["task"] == {"type": "report.make", "queue": "slow", "priority": 7, "tags": ["vip"], "status": "failed"}


def test_a_changed_body_and_another_secret_do_not_verify(serve_site: Start) -> None:
    site = serve_site({"/": Answer(200)})
    _send(site.url())
    (asked,) = site.asked
    with pytest.raises(WebhookVerificationError):
        Receiver(SECRET).verify(asked.body.replace(b"vip", b"vap"), asked.headers)
    with pytest.raises(WebhookVerificationError):
        Receiver(base64.b64encode(secrets.token_bytes(32)).decode()).verify(asked.body, asked.headers)


def test_every_try_of_a_delivery_has_the_same_id(serve_site: Start) -> None:
    site = serve_site({"/": Answer(500)})
    for attempt in (1, 2):
        _send(site.url(), delivery_id="dlv_9", attempt=attempt)
    assert [asked.headers["webhook-id"] for asked in site.asked] == ["dlv_9", "dlv_9"]


@pytest.mark.parametrize("status", [302, 400, 401, 404, 429, 500, 503])
def test_an_answer_that_is_not_2xx_means_another_try(serve_site: Start, status: int) -> None:
    site = serve_site({"/": Answer(status, {"location": "/elsewhere"})})
    run = _send(site.url())
    assert run.status == "retry"
    assert f"HTTP {status}" in run.detail
    assert len(site.asked) == 1


@pytest.mark.parametrize(("status", "delay"), [(429, 33), (503, 33), (500, None)])
def test_retry_after_is_honoured_where_it_means_something(serve_site: Start, status: int, delay: float | None) -> None:
    site = serve_site({"/": Answer(status, {"retry-after": "33"})})
    assert _send(site.url()).delay == delay


def test_gone_ends_the_delivery(serve_site: Start) -> None:
    assert _send(serve_site({"/": Answer(410)}).url()).status == "dead"


def test_a_receiver_that_is_down_or_slow_means_another_try(serve_site: Start) -> None:
    never = threading.Event()
    site = serve_site({"/": Answer(wait_for=never)})
    slow = run_notifier(Webhook, {"url": site.url(), "secret": SECRET, "timeout": 0.2}, config=LOCAL)
    never.set()
    assert (slow.status, slow.detail) == ("retry", "no answer within 0.2 s")
    assert _send("http://127.0.0.1:1/").status == "retry"


@pytest.mark.parametrize("config", [None, Config()])
def test_private_addresses_are_refused_unless_configured(serve_site: Start, config: Config | None) -> None:
    site = serve_site({"/": Answer()})
    assert _send(site.url(host="localhost"), config).status == "dead"
    assert site.asked == []


@pytest.mark.parametrize(
    "secret", ["", "hunter2", "whsec_", "whsec_not base64!", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_")], ids=lambda secret: f"{len(secret)} characters"
)
def test_a_weak_or_malformed_secret_is_refused_when_configured_and_not_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match="expected whsec_ followed by Base64") as caught:
        WebhookOptions.model_validate({"url": "https://hooks.example.com/", "secret": secret})
    assert caught.value.errors(include_input=False)[0]["loc"] == ("secret",)


def test_the_secret_is_masked_where_options_are_shown() -> None:
    options = WebhookOptions.model_validate({"url": "https://hooks.example.com/", "secret": SECRET})
    assert SECRET not in repr(options)
    assert SECRET not in json.dumps(options.model_dump(mode="json"))
