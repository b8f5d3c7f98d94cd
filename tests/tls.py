"""TLS in front of servers that have none: certificates of a test's own authority, and a proxy that ends TLS before PostgreSQL or RabbitMQ."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import trustme
from sqlalchemy import make_url

#: What a PostgreSQL client sends to ask for TLS.
SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Authority:
    """A certificate authority that nobody knows but its file, ``ca_file``."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def server(self, name: str, *, clients: bool = False) -> ssl.SSLContext:
        """What a server of this name needs. With ``clients``, it asks for a client's certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name).configure_cert(context)
        if clients:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, name: str) -> tuple[Path, Path]:
        """A client's certificate and key, as files."""
        made = self._ca.issue_cert(name, common_name=name)
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        key.touch(0o600)
        key.write_bytes(made.private_key_pem.bytes())
        return certificate, key


class TlsFront:
    """A proxy on loopback whose clients speak TLS, and whose server (``url``) does not."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._target = make_url(url)
        self._context = context
        self._postgres = self._target.drivername.startswith("postgresql")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls", daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port: int = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)

    async def _serve(self) -> int:
        self._server = await asyncio.start_server(self._on_client, "127.0.0.1", 0, ssl=None if self._postgres else self._context)
        return int(self._server.sockets[0].getsockname()[1])

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # A client that refuses our certificate is gone by then.
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._postgres:
            # Nothing but TLS is served.
            if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                return
            writer.write(b"S")
            await writer.start_tls(self._context)
        folder = self._target.query.get("host")
        if isinstance(folder, str):
            to_reader, to_writer = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        else:
            to_reader, to_writer = await asyncio.open_connection(self._target.host, self._target.port)
        try:
            halves = [asyncio.create_task(_pump(reader, to_writer)), asyncio.create_task(_pump(to_reader, writer))]
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)
        finally:
            to_writer.transport.abort()

    def close(self) -> None:
        """The end of it, and of its connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
