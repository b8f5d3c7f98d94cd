"""Requests of web pages, where no keys are asked for: a page that somebody happens to look at must not command the service.

A browser sends a page's requests wherever the page says, to this machine's loopback too, and tells where they come from by ``Origin``
and ``Sec-Fetch-Site`` (Fetch standard). Programs send neither.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from taskyard_api import problems
from taskyard_api.errors import ForeignPage

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Origins:
    """Lets pages change something only if they are the service's own, or among ``allowed`` (``api.cors_origins``), as plain ASGI.

    The service's own pages have the origin that the request asks for by ``Host``; hosts.py has refused the names of others.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE and not self._is_welcome(dict(scope["headers"])):
            response = await problems.on_taskyard_error(Request(scope), ForeignPage())
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_welcome(self, headers: dict[bytes, bytes]) -> bool:
        if b"origin" not in headers:
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        origin = headers[b"origin"].decode("latin-1")
        if "*" in self._allowed or origin in self._allowed:
            return True
        try:
            return urlsplit(origin).netloc.encode("latin-1") == headers.get(b"host")
        except ValueError:
            return False
