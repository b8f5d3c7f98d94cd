"""Opaque page cursors: where the next page starts, bound to the filters of the first."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from typing import Any

from taskyard.errors import InvalidInput

_DIGEST = 6


def _digest(filters: Any) -> bytes:
    return hashlib.blake2b(json.dumps(filters, sort_keys=True, default=str).encode(), digest_size=_DIGEST).digest()


def encode(position: bytes, filters: Any) -> str:
    """A cursor for the page that starts after ``position``."""
    body = _digest(filters) + position
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4)).decode().rstrip("=")


def decode(cursor: str, filters: Any) -> bytes:
    """The position in a cursor.

    Raises:
        InvalidInput: it is garbled, or it belongs to other filters.
    """
    try:
        # Decoding ignores what is not base64, and stray bits of the last character: only the exact text is accepted.
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    body, check = raw[:-4], raw[-4:]
    if len(raw) <= _DIGEST + 4 or zlib.crc32(body).to_bytes(4) != check:
        raise InvalidInput("The cursor is garbled.", [("/cursor", "expected next_cursor of an earlier page, unchanged")])
    if body[:_DIGEST] != _digest(filters):
        raise InvalidInput("The cursor belongs to other filters.", [("/cursor", "expected the filters of the page that it came from")])
    return body[_DIGEST:]
