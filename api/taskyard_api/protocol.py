"""HTTP/1.1 as uvicorn speaks it, with an end to headers: in time, and in size. Without, a few slow or endless clients hold a process."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taskyard_api.sse import ABORT

log = structlog.get_logger(__name__)
#: Seconds that a client gets for a request's line and headers, and how many bytes they may have.
HEADER_SECONDS = 10.0
HEADER_BYTES = 64 * 1024
#: Seconds for which an idle connection stays open when the server stops.
LINGER = 1.0

_REFUSAL = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """One connection. It is closed when a request's headers take too long, or do not end."""

    _timer: asyncio.TimerHandle | None = None
    _before_body = 0
    _trailers = 0

    def connection_made(self, transport: Any) -> None:
        """A client has connected, and has yet to ask for something."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._await_headers()
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]  # an addition of ours

    def on_headers_complete(self) -> None:
        """The empty line after the headers. A connection that is kept open after the answer is uvicorn's to close."""
        self._stop_waiting()
        self._trailers = 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or, behind the last chunk of a body, a trailer, which nobody reads."""
        if self._timer is not None:
            super().on_header(name, value)
            return
        self._trailers += len(name) + len(value)
        if self._trailers > HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def shutdown(self) -> None:
        """The server stops. An idle connection is closed a moment later: a request may be on its way, and would be reset."""
        if self._is_idle():
            self.loop.call_later(LINGER, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        # A request whose headers have begun is answered, and its time is bounded.
        if self._is_idle() and not (self._timer is not None and self._before_body):
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        """All is answered. Where the client still sends, and has had its time for that, its request need not end any more."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Some bytes. A parser that still waits for the end of headers has kept all of them."""
        super().data_received(data)
        if self._timer is None:
            self._before_body = 0
            return
        self._before_body += len(data)
        if self._before_body > HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def _await_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._refuse, b"408 Request Timeout")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            log.info("request.refused", status=status.decode(), bytes=self._before_body)
            self.transport.write(_REFUSAL % status)
            self.transport.close()
