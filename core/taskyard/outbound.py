"""HTTP to addresses that somebody else chose, without becoming a way into the operator's own network.

A task's payload or a route names the URL, so the worker must not be talked into reaching what only the worker can reach
(server-side request forgery). The check sits where the connection is made: a name is resolved once, its addresses are
checked, and the connection goes to one of the checked addresses. A name that answers differently the second time (DNS
rebinding), a redirect or an odd spelling of an address gains nothing. Host header and TLS keep the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore2
import httpx2
import structlog

from taskyard.errors import AddressRefused
from taskyard.network import environment_checked

log = structlog.get_logger(__name__)

#: Turns a host and a port into IP addresses, the preferred first. Raises OSError.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_RETRY_AFTER = 86_400.0
_MAX_ADDRESSES = 4

_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Special ranges of the IANA registries that some Python versions call global, and Azure's metadata service.
_SPECIAL = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "3fff::/20")]


def is_public(address: str) -> bool:
    """Is this IP address one of the public internet's?

    False for private, loopback, link-local, multicast, reserved, shared and unspecified addresses and for cloud metadata
    services. IPv4 inside IPv6 (mapped, NAT64 of RFC 6052, 6to4 of RFC 3056) is judged by the IPv4 address.

    Raises:
        ValueError: not an IP address.
    """
    ip = _unwrapped(ipaddress.ip_address(address))
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _IPV6_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _SPECIAL)


def _unwrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, allow_private_networks: bool, resolve: Resolver) -> None:
        self._allow_private = allow_private_networks
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the base class's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._checked(host, port, timeout)
        share = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, share, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # the base class's signature
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise AddressRefused("unix sockets are not reached over HTTP here")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _checked(self, host: str, port: int, seconds: float | None) -> Sequence[str]:
        try:
            async with asyncio.timeout(seconds):
                found = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"resolving {host!r} took longer than {seconds} s") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA can't encode
            raise httpcore2.ConnectError(f"{host!r} can't be resolved: {error}") from error
        good = found if self._allow_private else [address for address in found if is_public(address)]
        if not good:
            # For the operator alone: clients read the error, and could map an internal network name by name.
            log.warning("outbound.refused", host=host, addresses=list(found))
            raise AddressRefused(f"{host!r} is not an address of the public internet")
        return good[:_MAX_ADDRESSES]


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    """httpx's own transport, over a pool that connects through the guard.

    httpx has no parameter for a network backend. Its constructor is left out on purpose: if it ever keeps its pool elsewhere,
    requests fail instead of passing by the guard.
    """

    def __init__(self, backend: httpcore2.AsyncNetworkBackend) -> None:
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=_tls(), network_backend=backend)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the system's certificates takes about 20 ms, so it happens once."""
    with environment_checked():
        return httpx2.create_ssl_context()


def http_client(
    *,
    allow_private_networks: bool = False,
    timeout: float = 30.0,
    max_redirects: int = 0,
    resolve: Resolver | None = None,
) -> httpx2.AsyncClient:
    """An HTTP client that reaches the public internet only, unless ``allow_private_networks``.

    Use it as an async context manager, one for each run. ``timeout`` (seconds) is for each step: connect, read, write.
    Redirects are off, or at most ``max_redirects``; each hop is checked as the first address is. Proxies and ``.netrc`` of the
    environment are not used. ``resolve`` stands in for the system's resolver.

    Requests raise :class:`taskyard.AddressRefused` for an address that is not public, besides httpx's own errors. The error names the host, and the
    log (``outbound.refused``) the addresses that it has.
    """
    return httpx2.AsyncClient(
        transport=_GuardedTransport(_GuardedBackend(allow_private_networks, resolve or _resolve)),
        timeout=timeout,
        follow_redirects=max_redirects > 0,
        max_redirects=max_redirects,
        trust_env=False,
        headers={"user-agent": "taskyard"},
    )


async def read_limited(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """The body of a streamed response up to ``limit`` bytes, and whether there was more.

    Decoded bytes count, so a small compressed body can't become a large one in memory.
    """
    kept = bytearray()
    async with contextlib.aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            kept += chunk[: limit + 1 - len(kept)]
            if len(kept) > limit:
                return bytes(kept[:limit]), True
    return bytes(kept), False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3), at most a day; None without a usable one."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
