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

from taskyard import TaskFailed, TaskInfo
from taskyard.testing import NotifierRun, make_event, run_notifier
from taskyard_webhook import Config, Webhook, WebhookOptions

from .conftest import Answer, Site, raw_receiver

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


def test_while_secrets_change_each_signs_and_either_verifies(serve_site: Start) -> None:
    old, new, other = ("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(3))
    site = serve_site({"/": Answer(200)})
    for options in ({"secrets": [new, old]}, {"secret": new, "secrets": [old, new]}):
        assert run_notifier(Webhook, {"url": site.url(), **options}, config=LOCAL).status == "delivered"
        asked = site.asked[-1]
        assert len(asked.headers["webhook-signature"].split(" ")) == 2
        for secret in (old, new):
            Receiver(secret).verify(asked.body, asked.headers)
        with pytest.raises(WebhookVerificationError):
            Receiver(other).verify(asked.body, asked.headers)


def test_a_route_without_any_secret_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected secret, or secrets"):
        WebhookOptions.model_validate({"url": "https://hooks.example.com/"})
    with pytest.raises(ValidationError, match="expected whsec_ followed by Base64"):
        WebhookOptions.model_validate({"url": "https://hooks.example.com/", "secrets": [SECRET, "hunter2"]})


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


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://127.0.0.1:1/", "/elsewhere"])
def test_a_redirect_is_not_followed_and_named(serve_site: Start, target: str) -> None:
    site = serve_site({"/": Answer(307, {"location": target}), "/elsewhere": Answer(200)})
    run = _send(site.url())
    assert (run.status, run.detail) == ("retry", "HTTP 307 Temporary Redirect: a redirect, which is not followed; give the address that answers")
    assert [asked.path for asked in site.asked] == ["/"]


def test_a_code_of_its_own_says_that_a_receiver_is_gone(serve_site: Start) -> None:
    error = _send(serve_site({"/": Answer(410)}).url()).error
    assert isinstance(error, TaskFailed)
    assert error.code == "gone"


@pytest.mark.parametrize(("status", "outcome"), [(200, "delivered"), (500, "retry")])
def test_an_answer_of_100_mb_is_not_read(status: int, outcome: str) -> None:
    head = f"HTTP/1.1 {status} Fine\r\ncontent-length: 100000000\r\n\r\n".encode()
    with raw_receiver(head, repeat=b"x" * 100_000, times=1000) as receiver:
        run = _send(f"http://127.0.0.1:{receiver.port}/")
        assert (run.status, run.detail) == (outcome, f"HTTP {status} Fine")
        assert receiver.ended.wait(30), "its connection is closed"
    assert receiver.sent < 20_000_000, "what the sockets' buffers take, and no more"


def test_headers_without_end_are_not_read() -> None:
    with raw_receiver(b"HTTP/1.1 200 OK\r\n", repeat=b"x-more: " + b"y" * 1000 + b"\r\n", times=100_000) as receiver:
        assert _send(f"http://127.0.0.1:{receiver.port}/").status == "retry"
        assert receiver.ended.wait(30)
    assert receiver.sent < 20_000_000


def test_a_receiver_that_closes_in_the_middle_of_its_body_has_answered() -> None:
    with raw_receiver(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf") as receiver:
        assert _send(f"http://127.0.0.1:{receiver.port}/").status == "delivered"


def test_a_receiver_that_closes_before_it_has_answered_means_another_try() -> None:
    with raw_receiver(b"HTTP/1.1 20") as receiver:
        assert _send(f"http://127.0.0.1:{receiver.port}/").status == "retry"


def test_an_answer_is_told_by_status_and_reason_alone() -> None:
    reason = b"No" + b"o" * 500
    with raw_receiver(b"HTTP/1.1 500 " + reason + b"\r\nx-secret: hunter2\r\ncontent-length: 9\r\n\r\nour inner") as receiver:
        assert _send(f"http://127.0.0.1:{receiver.port}/").detail == f"HTTP 500 {reason[:100].decode()}"


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
