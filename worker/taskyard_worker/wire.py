"""How the worker's processes talk: JSON objects, each after its length in four bytes, over a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json, to_json

_LENGTH = struct.Struct("!I")


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = to_json(message)
    return _LENGTH.pack(len(body)) + body


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message of a blocking socket; None when the other side is gone."""
    head = _exactly(channel, _LENGTH.size)
    body = _exactly(channel, _LENGTH.unpack(head)[0]) if head else None
    return from_json(body) if body else None


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = channel.recv(count - len(parts))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message of a stream; None when the other side is gone."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        message: dict[str, Any] = from_json(await reader.readexactly(_LENGTH.unpack(head)[0]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return message


class Messages(asyncio.Protocol):
    """A socket's messages, all that have arrived at once: a coroutine would be woken twice for each."""

    def __init__(self, on_messages: Callable[[list[dict[str, Any]]], None], on_end: Callable[[], None]) -> None:
        self._on_messages = on_messages
        self._on_end = on_end
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Part of a message, or some."""
        self._received += data
        self._on_messages(self._whole())

    def _whole(self) -> list[dict[str, Any]]:
        at, received, whole = 0, self._received, []
        while len(received) >= (begin := at + _LENGTH.size):
            end = begin + _LENGTH.unpack_from(received, at)[0]
            if len(received) < end:
                break
            whole.append(from_json(bytes(received[begin:end])))
            at = end
        del received[:at]
        return whole

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        self._on_end()
