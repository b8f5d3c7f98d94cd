"""A real SMTP server on loopback: STARTTLS or TLS, login, and answers that a test scripts."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as MAIL
from pathlib import Path
from typing import Any, cast

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP as Server
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

LOGIN = ("taskyard", "right-horse-battery")


@dataclass
class MailServer:
    """The server, what it got, and what it answers; ``answers`` are by command: ``{"DATA": "451 later"}``."""

    port: int
    ca_file: Path
    answers: dict[str, str] = field(default_factory=dict)
    envelopes: list[Envelope] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)

    def mails(self) -> list[EmailMessage]:
        """What arrived, parsed."""
        return [message_from_bytes(cast(bytes, envelope.content), policy=MAIL) for envelope in self.envelopes]


class _Handler:
    def __init__(self) -> None:
        self.server = MailServer(0, Path())

    async def handle_MAIL(self, server: Server, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        envelope.mail_from, envelope.mail_options = address, options
        return self.server.answers.get("MAIL", "250 OK")

    async def handle_RCPT(self, server: Server, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        answer = self.server.answers.get(f"RCPT {address}", "250 OK")
        if answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: Server, session: Session, envelope: Envelope) -> str:
        answer = self.server.answers.get("DATA", "250 OK: queued as 1")
        if answer.startswith("2"):
            self.server.envelopes.append(envelope)
            self.server.encrypted.append(cast(asyncio.Transport, server.transport).get_extra_info("sslcontext") is not None)
            self.server.logins.append(str(session.auth_data or ""))
        return answer

    def authenticate(self, server: Server, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else ("", "")
        return AuthResult(success=given == LOGIN, handled=False, auth_data=given[0])


@contextmanager
def mail_server(folder: Path, security: str, *, login: bool = True) -> Iterator[MailServer]:
    """A server that speaks ``starttls``, ``tls`` or ``plain``. Its certificate is for localhost, signed by ``ca_file``."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    handler = _Handler()
    options: dict[str, Any] = {"hostname": "127.0.0.1", "port": 0, "ready_timeout": 30}
    starttls = security == "starttls"
    if login:
        # aiosmtpd does not see that a connection was TLS from its start, and warns of a login without it.
        options |= {"authenticator": handler.authenticate, "auth_required": starttls, "auth_require_tls": starttls}
    if starttls:
        options |= {"tls_context": context, "require_starttls": True}
    elif security == "tls":
        options |= {"ssl_context": context}
    controller = _Controller(handler, **options)
    controller.start()
    handler.server.port = controller.bound_port()
    handler.server.ca_file = folder / "ca.pem"
    try:
        yield handler.server
    finally:
        controller.stop()


class _Controller(Controller):
    """Controller, on whatever port is free."""

    def bound_port(self) -> int:
        assert isinstance(self.server, asyncio.Server)
        return int(self.server.sockets[0].getsockname()[1])

    def _trigger_server(self) -> None:
        """Its own connects to the port that it was given, which here is 0."""
        self.port = self.bound_port()
        super()._trigger_server()  # type: ignore[no-untyped-call]  # aiosmtpd's


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=lambda: _accept(listening, held), daemon=True)
        accepting.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    accepting.join(10)
    for connection in held:
        connection.close()


def _accept(listening: socket.socket, held: list[socket.socket]) -> None:
    try:
        while True:
            held.append(listening.accept()[0])
    except OSError:
        return
