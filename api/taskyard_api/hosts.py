"""The names by which the service may be called.

A web page can point a name of its own at this machine's loopback (DNS rebinding). The browser then takes the service for the page's own origin
and lets the page read every answer. Its requests carry that name in ``Host``, so a service that asks for no keys answers only to names that
nobody else can point at it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from taskyard_api import problems
from taskyard_api.access import OPEN, rule_for
from taskyard_api.edge import canonical
from taskyard_api.errors import UnknownHost

#: A name or an IPv4 address, or an IPv6 address in brackets; and perhaps a port (RFC 9110, 7.2). A name has 253 characters at most.
_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,254}))(?::[0-9]{0,5})?")


class Hosts:
    """Refuses requests by other names, as plain ASGI: all methods and paths but the health checks, which balancers call by any name.

    ``names`` are allowed besides loopback names and IP addresses; ``*.example.com`` stands for all names below example.com. ``refuse`` answers
    refused requests.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], refuse: ASGIApp) -> None:
        self._app = app
        self._refuse = refuse
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_welcome(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._refuse(scope, receive, send)

    def _is_welcome(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) == 1 and self._is_known(given[0].decode("latin-1").lower()):
            return True
        return scope["type"] == "http" and rule_for("GET" if scope["method"] == "HEAD" else scope["method"], canonical(scope["path"])) == OPEN

    def _is_known(self, host: str) -> bool:
        matched = _HOST.fullmatch(host)
        if matched is None:
            return False
        name = matched[1] or matched[2].removesuffix(".")
        if is_local_name(name) or name in self._names:
            return True
        parts = name.split(".")
        if any("*." + ".".join(parts[start:]) in self._names for start in range(1, len(parts))):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def is_local_name(name: str) -> bool:
    """Does a name stand for the loopback wherever it is looked up (RFC 6761, section 6.3)?"""
    return name == "localhost" or name.endswith(".localhost")


async def misdirected(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every request with 421 (RFC 9110, 15.5.20)."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    response = await problems.on_taskyard_error(Request(scope), UnknownHost(given))
    await response(scope, receive, send)
