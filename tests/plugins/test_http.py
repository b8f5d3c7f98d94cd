"""The plugin ``http``: what http.request sends, keeps, retries and refuses."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

import taskyard_http
from taskyard import InvalidInput
from taskyard.testing import HandlerRun, run_handler
from taskyard_http import Config

from .conftest import Answer, Site

LOCAL = Config(allow_private_networks=True, max_body_bytes=1000)
Start = Callable[..., Site]


def _run(payload: dict[str, Any], config: Config | None = LOCAL, **options: Any) -> HandlerRun:
    return run_handler(taskyard_http.request, payload, config=config, **options)


def test_the_response_is_kept(serve_site: Start) -> None:
    site = serve_site({"/a?b=c": Answer(200, {"x-kind": "one", "content-type": "text/plain; charset=iso-8859-1"}, "Grüße".encode("latin-1"))})
    run = _run({"url": site.url("/a?b=c"), "headers": {"X-Asked": "yes"}})
    assert run.status == "succeeded"
    assert run.result["status"] == 200
    assert run.result["headers"]["x-kind"] == "one"
    assert (run.result["body"], run.result["encoding"], run.result["truncated"]) == ("Grüße", "text", False)
    assert run.result["duration"] > 0
    assert site.asked[0].headers["x-asked"] == "yes"


@pytest.mark.parametrize(
    ("given", "content_type", "sent"),
    [
        ({"json": {"a": [1, None]}}, "application/json", b'{"a":[1,null]}'),
        ({"json": None}, "application/json", b"null"),
        ({"text": "grün"}, "text/plain; charset=utf-8", "grün".encode()),
        ({"text": "<a/>", "headers": {"Content-Type": "application/xml"}}, "application/xml", b"<a/>"),
    ],
)
def test_the_body_is_sent_as_json_or_text(serve_site: Start, given: dict[str, Any], content_type: str, sent: bytes) -> None:
    site = serve_site({"/": Answer()})
    assert _run({"method": "POST", "url": site.url(), **given}).status == "succeeded"
    assert (site.asked[0].method, site.asked[0].headers["content-type"], site.asked[0].body) == ("POST", content_type, sent)


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"url": "ftp://example.com/"}, "/url"),
        ({"url": "not a url"}, "/url"),
        ({"method": "TRACE"}, "/method"),
        ({"headers": {"Host": "inside"}}, "/headers"),
        ({"headers": {"X": "a\r\nY: b"}}, "/headers"),
        ({"headers": {"a b": "c"}}, "/headers"),
        ({"json": 1, "text": "a"}, ""),
        ({"timeout": 0}, "/timeout"),
        ({"expected": [99]}, "/expected/0"),
        ({"verify": False}, "/verify"),
    ],
)
def test_wrong_input_is_refused_at_its_place(wrong: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _run({"url": "https://example.com/", **wrong})
    assert caught.value.problems[0][0].startswith(pointer)


def test_a_body_longer_than_the_limit_is_cut_and_said_so(serve_site: Start) -> None:
    site = serve_site({"/": Answer(body="é".encode() * 600)})
    run = _run({"url": site.url()}, LOCAL.model_copy(update={"max_body_bytes": 1001}))
    assert run.result["truncated"] is True
    assert run.result["body"] == "é" * 500


def test_a_body_of_just_the_limit_is_whole(serve_site: Start) -> None:
    site = serve_site({"/": Answer(body=b"x" * 1000)})
    assert _run({"url": site.url()}).result["truncated"] is False


def test_a_compressed_body_counts_unpacked(serve_site: Start) -> None:
    bomb = gzip.compress(gzip.compress(bytes(200 * 1024 * 1024)))
    site = serve_site({"/": Answer(200, {"content-encoding": "gzip, gzip"}, bomb)})
    run = _run({"url": site.url()})
    assert run.result["truncated"] is True
    assert base64.b64decode(run.result["body"]) == bytes(1000)


@pytest.mark.parametrize("body", [b"\x89PNG\r\n\x1a\n\x00", b"\xff\xfe", b"a\x00b"])
def test_a_body_that_is_no_text_is_kept_as_base64(serve_site: Start, body: bytes) -> None:
    site = serve_site({"/": Answer(body=body)})
    run = _run({"url": site.url()})
    assert run.result["encoding"] == "base64"
    assert base64.b64decode(run.result["body"]) == body


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "rot13", "nonsense"])
def test_a_strange_charset_is_not_believed(serve_site: Start, charset: str) -> None:
    site = serve_site({"/": Answer(200, {"content-type": f"text/plain; charset={charset}"}, b"+2AA-\\ud800")})
    run = _run({"url": site.url()})
    assert run.status == "succeeded"
    json.dumps(run.result, ensure_ascii=False).encode()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_trouble_that_may_pass_is_tried_again(serve_site: Start, status: int) -> None:
    site = serve_site({"/": Answer(status)})
    run = _run({"url": site.url()})
    assert (run.status, run.delay) == ("scheduled", taskyard_http.request.retry.delay(1, draw=0.5))


def test_retry_after_decides_when(serve_site: Start) -> None:
    site = serve_site({"/": Answer(429, {"retry-after": "77"})})
    assert _run({"url": site.url()}).delay == 77


@pytest.mark.parametrize("status", [400, 401, 404, 410, 302])
def test_another_unexpected_status_fails_for_good(serve_site: Start, status: int) -> None:
    site = serve_site({"/": Answer(status, {"location": "/"}, b"why")})
    run = _run({"url": site.url()})
    assert (run.status, run.code) == ("failed", "unexpected-status")
    assert run.error.details == {"status": status, "body": "why"}  # type: ignore[union-attr]  # a TaskFailed, by its code


def test_an_expected_status_is_success_and_others_are_not(serve_site: Start) -> None:
    site = serve_site({"/gone": Answer(503), "/fine": Answer(200)})
    assert _run({"url": site.url("/gone"), "expected": [404, 503]}).result["status"] == 503
    assert _run({"url": site.url("/fine"), "expected": [404, 503]}).code == "unexpected-status"


def test_a_connection_that_fails_is_tried_again(serve_site: Start) -> None:
    assert _run({"url": "http://127.0.0.1:1/"}).status == "scheduled"
    assert _run({"url": "http://no-such-host.invalid/"}).status == "scheduled"


def test_a_slow_server_is_left_at_the_timeout_and_tried_again(serve_site: Start) -> None:
    never = threading.Event()
    site = serve_site({"/": Answer(wait_for=never)})
    run = _run({"url": site.url(), "timeout": 0.2})
    never.set()
    assert run.status == "scheduled"
    assert "took longer than 0.2 s" in str(run.error)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "169.254.169.254", "[64:ff9b::7f00:1]"])
@pytest.mark.parametrize("config", [None, Config()])
def test_private_addresses_are_refused_unless_configured(serve_site: Start, host: str, config: Config | None) -> None:
    site = serve_site({"/": Answer()})
    run = _run({"url": site.url(host=host)}, config)
    assert (run.status, run.code) == ("failed", "address-refused")
    assert site.asked == []


def test_redirects_are_followed_only_when_asked_and_only_so_far(serve_site: Start) -> None:
    site = serve_site({"/": Answer(302, {"location": "/end"}), "/end": Answer(body=b"end"), "/loop": Answer(302, {"location": "/loop"})})
    run = _run({"url": site.url(), "follow_redirects": True})
    assert (run.result["url"], run.result["body"]) == (site.url("/end"), "end")
    assert _run({"url": site.url("/loop"), "follow_redirects": True}).code == "too-many-redirects"


def test_headers_of_the_task_do_not_follow_a_redirect_to_another_origin(serve_site: Start) -> None:
    other = serve_site({"/": Answer()})
    site = serve_site({"/": Answer(302, {"location": other.url()})})
    run = _run({"url": site.url(), "headers": {"X-Api-Key": "secret", "Authorization": "Bearer t"}, "follow_redirects": True})
    assert run.status == "succeeded"
    assert {"x-api-key", "authorization"} & set(other.asked[0].headers) == set()


def test_a_redirect_out_of_http_fails_for_good(serve_site: Start) -> None:
    site = serve_site({"/": Answer(302, {"location": "file:///etc/passwd"})})
    assert _run({"url": site.url(), "follow_redirects": True}).code == "invalid-request"


def test_a_broken_encoding_fails_for_good(serve_site: Start) -> None:
    site = serve_site({"/": Answer(200, {"content-encoding": "gzip"}, b"not gzip")})
    assert _run({"url": site.url()}).code == "invalid-response"
