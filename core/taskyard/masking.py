"""What logs and commands may show: secrets masked (by the name of a key, in URLs, and known ones wherever they stand), control characters
escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from pydantic import BaseModel, SecretBytes, SecretStr

MASK = "***"
#: C0 and C1 controls, DEL and the line separators: what could forge a line or drive a terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_KEY = re.compile(r"pass(word|wd|phrase)|secret|token|authorization|credential|api[_-]?key|private[_-]?key|cookie", re.IGNORECASE)
#: The password of a URL (RFC 3986, 3.2.1). What follows its last @ before the path is the host.
_URL_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s:/?#@]*:)[^\s/?#]*@", re.IGNORECASE)
#: A secret in a URL's query, such as libpq's ?password=.
_URL_QUERY = re.compile(r"(?P<head>[?&][\w-]*(password|secret|token|key|signature)[\w-]*=)[^&\s#]+", re.IGNORECASE)
#: Servers whose URL is of use without its password. Others may have their secrets anywhere in it, as those of chat services have.
_SERVER = re.compile(r"(postgres|postgresql|amqp|amqps|pyamqp|redis|rediss|sentinel|https?|filesystem|memory|sqs|rpc)(\+\w+)?://", re.IGNORECASE)
#: A part of such a URL that is shorter may be any word.
_SHORTEST_PART = 10
#: A secret that is shorter is not looked for inside other texts: it may be any word.
SHORTEST = 6
#: One that is shorter than this only counts as a word of its own, so that the password "postgres" leaves "postgresql" alone.
_SURE = 10


class Hidden:
    """Secret values that are replaced wherever they stand, such as in an exception's text. With ``most``, only the last so many."""

    def __init__(self, most: int | None = None) -> None:
        self._values: dict[str, None] = {}
        self._most = most
        self._pattern: re.Pattern[str] | None = None

    def add(self, values: Iterable[str]) -> None:
        """Hide these too, also as they stand in URLs. Short ones are left out."""
        shapes = (form for value in values if len(value) >= SHORTEST for form in (value, quote(value, safe=""), quote_plus(value), quote(value)))
        if not (forms := dict.fromkeys(shapes)).keys() - self._values.keys():
            return
        self._values |= forms
        for oldest in list(self._values)[: len(self._values) - self._most] if self._most else ():
            del self._values[oldest]
        # The longest first: one secret may be the beginning of another.
        parts = [re.escape(value) if len(value) >= _SURE else rf"(?<!\w){re.escape(value)}(?!\w)" for value in sorted(self._values, key=len, reverse=True)]
        self._pattern = re.compile("|".join(parts)) if parts else None

    def clean(self, text: str) -> str:
        """The text without them."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """The secret texts in settings or options: by type, by the names of their keys, and the passwords of URLs."""
    if isinstance(value, SecretStr | SecretBytes):
        raw = value.get_secret_value()
        held = raw if isinstance(raw, str) else raw.decode(errors="replace")
        if _SERVER.match(held):
            yield from _url_secrets(held)
        else:
            yield held
            yield from (part for part in re.split(r"[:/@?&=#]+", held) if "://" in held and len(part) >= _SHORTEST_PART)
    elif isinstance(value, str):
        yield from [value] if _is_secret(key) else _url_secrets(value)
    elif isinstance(value, BaseModel):
        for name, inner in value:
            yield from secrets_in(inner, name)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from secrets_in(inner, str(name))
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from secrets_in(inner, key)


def _url_secrets(text: str) -> Iterator[str]:
    found = [*_URL_PASSWORD.finditer(text), *_URL_QUERY.finditer(text)] if "://" in text else []
    for match in found:
        written = match[0].removeprefix(match["head"]).removesuffix("@")
        yield from (written, unquote(written))


def mask(value: Any, key: str = "", depth: int = 0) -> Any:
    """A value that is safe to show under ``key``: secrets replaced, also inside mappings, lists and models."""
    if isinstance(value, str):
        return MASK if value and _is_secret(key) else mask_url(value)
    if isinstance(value, SecretStr):
        shown = mask_url(value.get_secret_value())
        # A malformed URL may hide its password anywhere.
        return shown if _SERVER.match(shown) and shown.count("@") == shown.count(f":{MASK}@") and not _is_secret(key) else MASK
    if isinstance(value, SecretBytes) or (_is_secret(key) and value not in (None, b"") and not isinstance(value, bool | int | float)):
        return MASK
    if depth >= 16:
        return value
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {name: mask(inner, str(name), depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask(inner, "", depth + 1) for inner in value]
    return value


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key))


def mask_url(text: str) -> str:
    """The text with the password of each URL in it replaced, and secrets in their queries."""
    if "://" not in text:
        return text
    return _URL_QUERY.sub(rf"\g<head>{MASK}", _URL_PASSWORD.sub(rf"\g<head>{MASK}@", text))


def escape_controls(text: str) -> str:
    """The text with control characters as escapes, such as ``\\n``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
