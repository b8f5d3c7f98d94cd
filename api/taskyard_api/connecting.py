"""Connections of asyncpg that mean by DATABASE_URL what psycopg's mean."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

import asyncpg

from taskyard import sessions
from taskyard.certificates import check_certificates, load_client_certificate
from taskyard.database import APPLICATION, KEEPALIVE, connect_timeout, postgres_url
from taskyard.postgres_url import PostgresUrl
from taskyard.settings import DatabaseSettings

#: asyncpg takes these as parts of a DSN only.
_IN_DSN = ("sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version", "sslnegotiation")
_AS_ARGUMENTS = ("passfile", "krbsrvname", "gsslib", "target_session_attrs")
#: How libpq's names for the care of a connection are called on Linux' sockets. libpq counts tcp_user_timeout in milliseconds, as Linux does.
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Connector:
    """Makes connections to the configured database: to the first of its hosts that is there and takes writes.

    A host that did not answer in time is not asked first again: asyncpg bounds the time for all hosts together, and the first one would
    use it up each time.

    Raises:
        ConfigurationError: the URL is wrong, or a certificate of it can't be loaded.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        url = postgres_url(settings)
        check_certificates(url)
        self._hosts = url.addresses
        self._first = 0
        self._arguments = _arguments(url, connect_timeout(settings), settings.statement_timeout)
        self._care = KEEPALIVE | dict(url.parameters)
        self._session = sessions.of_roles(settings)
        self._pids: WeakKeyDictionary[asyncpg.Connection, int] = WeakKeyDictionary()

    @property
    def first(self) -> tuple[str, int]:
        """The host that is tried first."""
        return self._hosts[self._first]

    def pid_of(self, connection: asyncpg.Connection) -> int:
        """The process id of a connection's backend, behind a pooler too."""
        return self._pids.get(connection) or int(connection.get_server_pid())

    async def connect(self, role: str) -> asyncpg.Connection:
        """A connection whose session is set up. ``role`` names it in pg_stat_activity. Raises what asyncpg raises."""
        connection = await self.reach(role)
        try:
            rows = await connection.fetch(self._session, timeout=self._arguments["timeout"])
            self._pids[connection] = rows[0][0]
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def reach(self, role: str) -> asyncpg.Connection:
        """A connection that is good for one question: nothing is set up."""
        last = len(self._hosts) - 1
        for tried in range(len(self._hosts)):
            place = self._first
            try:
                connection = await self._reach(self._hosts[place], role)
            except BaseException as error:
                self._first = (place + 1) % len(self._hosts)
                if tried == last or not isinstance(error, OSError | TimeoutError | asyncpg.CannotConnectNowError | asyncpg.TargetServerAttributeNotMatched):
                    raise
            else:
                return connection
        raise AssertionError("a URL has one host at least")

    async def _reach(self, host: tuple[str, int], role: str) -> asyncpg.Connection:
        settings = {"application_name": f"{APPLICATION}-{role}", **self._arguments["server_settings"]}
        connection = await asyncpg.connect(**self._arguments | {"host": host[0], "port": host[1], "server_settings": settings})
        _take_care(connection, self._care)
        return connection


def _arguments(url: PostgresUrl, timeout: float, command_timeout: float) -> dict[str, Any]:
    """All of asyncpg.connect's arguments but the host."""
    given = dict(url.parameters)
    arguments: dict[str, Any] = {"user": url.user, "database": url.database, "timeout": timeout, "command_timeout": command_timeout}
    if url.password is not None:
        arguments["password"] = url.password
    arguments |= {name: given[name] for name in _AS_ARGUMENTS if name in given}
    if given.get("sslrootcert") == "system":
        # asyncpg would look for a file of this name.
        context = ssl.create_default_context()
        if "sslcert" in given:
            load_client_certificate(context, given)
        arguments["ssl"] = context
    else:
        arguments |= {"ssl": given["sslmode"]} if "sslmode" in given else {}
        arguments["dsn"] = f"postgresql://?{urlencode({name: given[name] for name in _IN_DSN if name in given})}".rstrip("?")
    # asyncpg sends what it does not know to the server, which knows it, as libpq does.
    arguments["server_settings"] = {"options": given["options"]} if "options" in given else {}
    return arguments


def _take_care(connection: asyncpg.Connection, given: Mapping[str, str]) -> None:
    """Have the kernel find out that the host is gone, as libpq does. asyncpg has no public way to its socket."""
    transport = getattr(connection, "_transport", None)
    wire = transport and transport.get_extra_info("socket")
    if wire is None or wire.family == socket.AF_UNIX or given.get("keepalives") == "0":
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, option in _SOCKET_OPTIONS.items():
        if hasattr(socket, option) and int(given[name]) > 0:
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), int(given[name]))
