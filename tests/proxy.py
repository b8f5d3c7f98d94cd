"""A wire that can be cut: a TCP proxy on loopback, to be put before a PostgreSQL, a RabbitMQ or a Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import URL, make_url

T = TypeVar("T")
CHUNK = 65536


@dataclass(eq=False, slots=True)
class _Wire:
    """One connection: the client's side, the server's side, and what its trap has seen."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    flow: dict[str, asyncio.Event]
    seen: set[bytes] = field(default_factory=set)

    def cut(self) -> None:
        """Reset the client at once. The server still reads what was sent to it, and then finds the end."""
        self.client.transport.abort()
        self.server.close()


@dataclass(eq=False, slots=True)
class Trap:
    """Cuts one connection: the first whose client sent ``first`` and then ``then``, just before or just after ``then`` went on.

    Both words may come in one chunk, in this order.
    """

    first: bytes
    then: bytes
    forward: bool
    sprung: threading.Event = field(default_factory=threading.Event)

    def catches(self, wire: _Wire, data: bytes) -> bool:
        if self.sprung.is_set():
            return False
        at = 0
        if self.first not in wire.seen:
            at = data.find(self.first)
            if at < 0:
                return False
            wire.seen.add(self.first)
        if data.find(self.then, at) < 0:
            return False
        self.sprung.set()
        return True


class Proxy:
    """Passes bytes on, until told otherwise; each fault lasts until :meth:`heal`. Its port stays the same.

    Methods are for other threads than its own, and return when what they ask for is so.
    """

    def __init__(self, url: str, port: int) -> None:
        self._target = make_url(url)
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._wires: set[_Wire] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._traps: list[Trap] = []
        self.connections = 0
        """Connections that clients have made so far."""
        self._hung: set[str] = set()
        self.heal()

    def url_of(self, url: str) -> str:
        """The same URL by way of this proxy."""
        parts = make_url(url)
        if parts.drivername == "redis+socket":
            return f"redis://127.0.0.1:{self.port}/0"
        query = {k: v for k, v in parts.query.items() if k not in ("host", "port")}
        return parts.set(host="127.0.0.1", port=self.port, query=query).render_as_string(hide_password=False)

    def cut(self) -> None:
        """Cut the connections that there are; new ones are let through."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Cut the connections that there are, and refuse new ones."""
        self._do(self._refuse())

    def hang(self, *ways: str, new: bool = True) -> None:
        """Pass no byte on: in these ways (``to_server``, ``to_client``), or in both. What was sent meanwhile arrives at :meth:`heal`, as
        after a partition of a network, unless the connection is cut first. ``new`` connections are taken, and hang as well, or they work.
        """
        self._do(self._hang(ways or ("to_server", "to_client"), new))

    def cut_at(self, first: bytes, then: bytes = b"COMMIT", *, forward: bool = True) -> Trap:
        """Lay a trap that cuts one connection at ``then``; ``forward`` says whether the server still gets it."""
        trap = Trap(first, then, forward)
        self._traps.append(trap)
        return trap

    def heal(self) -> None:
        """Pass everything on again."""
        self._traps.clear()
        self._do(self._heal())

    def close(self) -> None:
        """Cut everything, and end the thread."""
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _hang(self, ways: tuple[str, ...], new: bool) -> None:
        for wire in self._wires:
            for way in ways:
                wire.flow[way].clear()
        if new:
            self._hung.update(ways)

    async def _heal(self) -> None:
        self._hung.clear()
        for wire in self._wires:
            for flow in wire.flow.values():
                flow.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        # What asyncio has just accepted and not handed over yet comes to _serve first: ended before, it would leave its socket open.
        for _ in range(5):
            await asyncio.sleep(0)
        for wire in list(self._wires):
            wire.cut()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._serving.add(me)
        me.add_done_callback(self._serving.discard)
        await self._connect(from_client, to_client)

    async def _connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._server is None:
            to_client.transport.abort()
            return
        self.connections += 1
        try:
            from_server, to_server = await _open(self._target)
        except (OSError, asyncio.CancelledError):
            to_client.transport.abort()
            return
        wire = _Wire(to_client, to_server, {"to_server": asyncio.Event(), "to_client": asyncio.Event()})
        for way in wire.flow.keys() - self._hung:
            wire.flow[way].set()
        self._wires.add(wire)
        ways = [self._pass(wire, from_client, to_server, "to_server"), self._pass(wire, from_server, to_client, "to_client")]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            # Where one side ends, the other has nothing to say any more: none of our protocols closes one way only.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            self._wires.discard(wire)
            for task in tasks:
                task.cancel()
            to_client.close()
            to_server.close()

    async def _pass(self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await wire.flow[way].wait()
                trap = next((t for t in self._traps if t.catches(wire, data)), None) if way == "to_server" else None
                if trap is None or trap.forward:
                    writer.write(data)
                    await writer.drain()
                if trap is not None:
                    wire.cut()
                    return


async def _open(target: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.drivername == "redis+socket":
        return await asyncio.open_unix_connection(f"/{target.database}" if not str(target.database).startswith("/") else target.database)
    if isinstance(folder := target.query.get("host"), str):
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
    return await asyncio.open_connection(target.host, target.port)
