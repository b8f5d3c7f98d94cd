"""The guard on outgoing HTTP: what may be reached, and that it can't be talked round."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from structlog.testing import capture_logs

from taskyard import AddressRefused, http_client, outbound, retry_after
from taskyard.outbound import Resolver, is_public

from .conftest import Answer, Site

REFUSED = """
127.0.0.1 127.8.9.10 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 169.254.169.254 192.0.0.192 168.63.129.16 100.100.100.200
198.18.0.1 203.0.113.5 224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1::1 2001:0:7f00:1::1 2001:db8::1 3fff::1 fc00::1 fd00:ec2::254
fe80::1 fec0::1 ff02::1 ff0e::1 5f00::1 100::1
""".split()  # noqa: SIM905  # a list of 38 lines would hide the tests


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_the_public_internets_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"])
def test_a_public_address_is_allowed_also_inside_ipv6(address: str) -> None:
    assert is_public(address)


def _get(url: str, **options: Any) -> httpx2.Response:
    async def get() -> httpx2.Response:
        async with http_client(**options) as client:
            return await client.get(url)

    return asyncio.run(get())


def _answers(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """A resolver that gives each answer once, and the names that it was asked for."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    return resolve, asked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1", "0"])
def test_no_spelling_of_loopback_is_reached(serve_site: Callable[..., Site], host: str) -> None:
    site = serve_site({"/": Answer()})
    with pytest.raises((AddressRefused, httpx2.ConnectError, httpx2.InvalidURL)):
        _get(site.url(host=host))
    assert site.asked == []


def test_a_name_is_resolved_once_so_rebinding_gains_nothing(serve_site: Callable[..., Site]) -> None:
    site = serve_site({"/": Answer(body=b"here")})
    resolve, asked = _answers(["127.0.0.1"])
    response = _get(site.url(host="rebind.test"), resolve=resolve, allow_private_networks=True)
    assert response.text == "here"
    assert asked == ["rebind.test"]
    assert site.asked[0].headers["host"] == f"rebind.test:{site.port}"


def test_a_name_with_a_private_address_is_refused_before_anything_is_sent(serve_site: Callable[..., Site]) -> None:
    site = serve_site({"/": Answer()})
    resolve, _ = _answers(["127.0.0.1", "::1"])
    with pytest.raises(AddressRefused) as refused, capture_logs() as logged:
        _get(site.url(host="inside.test"), resolve=resolve)
    assert site.asked == []
    assert str(refused.value) == "'inside.test' is not an address of the public internet", "clients read it: it names no address of the network"
    assert [(line["event"], line["host"], line["addresses"]) for line in logged] == [("outbound.refused", "inside.test", ["127.0.0.1", "::1"])]


def test_each_redirect_is_checked(serve_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback plays the public internet: one address of it is allowed, the others are not."""
    monkeypatch.setattr(outbound, "is_public", lambda address: address == "127.0.0.1")
    secret = serve_site({"/": Answer(body=b"secret")})
    front = serve_site({"/": Answer(302, {"location": secret.url(host="inside.test")})})
    resolve, asked = _answers(["127.0.0.1"], ["127.0.0.2"])
    with pytest.raises(AddressRefused, match=r"inside\.test"):
        _get(front.url(host="front.test"), resolve=resolve, max_redirects=3)
    assert asked == ["front.test", "inside.test"]
    assert len(front.asked) == 1
    assert secret.asked == []


def test_redirects_are_off_unless_asked_for(serve_site: Callable[..., Site]) -> None:
    site = serve_site({"/": Answer(302, {"location": "/next"}), "/next": Answer()})
    assert _get(site.url(), allow_private_networks=True).status_code == 302


def test_the_next_address_is_tried_when_one_does_not_answer(serve_site: Callable[..., Site]) -> None:
    site = serve_site({"/": Answer(body=b"here")})
    resolve, _ = _answers(["127.0.0.2", "127.0.0.1"])
    assert _get(site.url(host="two.test"), resolve=resolve, allow_private_networks=True).text == "here"


def test_a_proxy_in_the_environment_does_not_carry_requests_past_the_guard(serve_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve_site({})
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url())
    resolve, _ = _answers(["10.0.0.1"])
    with pytest.raises(AddressRefused):
        _get("http://inside.test/", resolve=resolve)
    assert proxy.asked == []


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """A certificate authority that only this test trusts."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    outbound._tls.cache_clear()
    yield made
    outbound._tls.cache_clear()


def _tls_site(serve_site: Callable[..., Site], authority: trustme.CA, name: str) -> tuple[Site, list[str]]:
    context, told = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), []
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _socket, server_name, _context: told.append(server_name)
    return serve_site({"/": Answer(body=b"safe")}, lambda sock: context.wrap_socket(sock, server_side=True)), told


def test_tls_asks_for_the_name_and_checks_its_certificate(serve_site: Callable[..., Site], authority: trustme.CA) -> None:
    site, told = _tls_site(serve_site, authority, "service.test")
    resolve, _ = _answers(["127.0.0.1"])
    response = _get(f"https://service.test:{site.port}/", resolve=resolve, allow_private_networks=True)
    assert response.text == "safe"
    assert told == ["service.test"]


def test_tls_refuses_a_certificate_of_another_name(serve_site: Callable[..., Site], authority: trustme.CA) -> None:
    site, _ = _tls_site(serve_site, authority, "other.test")
    resolve, _ = _answers(["127.0.0.1"])
    with pytest.raises(httpx2.ConnectError, match=r"other\.test|certificate"):
        _get(f"https://service.test:{site.port}/", resolve=resolve, allow_private_networks=True)


@pytest.mark.parametrize(("value", "seconds"), [("120", 120), ("0", 0), ("9" * 5000, 86400), ("", None), ("soon", None), ("-5", None), ("1.5", None)])
def test_retry_after_in_seconds_is_read_and_capped_at_a_day(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_retry_after_as_a_date_is_read() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    assert retry_after({"retry-after": soon}) == pytest.approx(100, abs=30)
    assert retry_after({"retry-after": past}) == 0
