"""What logs and commands may show: secrets masked (by the name of a key, by type, in URLs, and known ones wherever they stand), control
characters escaped.

Every pattern here meets text that strangers write, so each takes time in proportion to the text: a repetition never starts where another
attempt of the same pattern has looked already. tests/core/test_patterns.py holds that for every pattern of the framework.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, quote_plus, unquote
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

MASK = "***"
CUT = "…"
#: C0 and C1 controls, DEL and the line separators: what could forge a line or drive a terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)|(^|[_-])(pass|pwd)$|secret|token|authorization|credential|cookie|signature|(^|[_-])sig$"
    r"|(api|private|access|signing|encryption|shared|master)[_-]?key",
    re.IGNORECASE,
)
#: The password of a URL (RFC 3986, 3.2.1). The host follows its last @ before the path.
_URL_PASSWORD = re.compile(r"(?P<head>://[^\s:/?#@]*:)[^\s/?#]*@")
#: A web address with a user and no password: the user is commonly a token.
_URL_TOKEN = re.compile(r"(?P<head>https?://)[^\s:/?#@]+@", re.IGNORECASE)
#: A web address, and the host in it.
_WEB = re.compile(r"https?://(?:[^/?#]*@)?(?P<host>[^/?#@:]*)", re.IGNORECASE)
#: A parameter of a URL's query or fragment, such as libpq's ?password= or OAuth's #access_token=.
_URL_PARAMETER = re.compile(r"(?P<head>[?&#](?P<name>[^\s?&#=]+)=)(?P<value>[^\s&#]+)")
#: An assignment in a text: libpq's ``password=x``, the repr of an object, or a member of JSON.
_ASSIGNED = re.compile(
    r"""(?P<head>(?:password|passwd|passphrase|pwd|secret|token|(?:api|access|private|signing|encryption|shared|master)[_-]?key)(?:\s{0,2}=\s{0,2}|['"]\s{0,2}:\s{0,2}(?=['"])))"""
    r"""(?:'[^'\n]{0,1000}'|"[^"\n]{0,1000}"|[^\s,;&)'"\]}]+)""",
    re.IGNORECASE,
)
#: Servers whose URL is of use without its password. Others may have their secrets anywhere in it, as those of chat services have.
_SERVER = re.compile(r"(postgres|postgresql|amqp|amqps|pyamqp|redis|rediss|sentinel|filesystem|memory|sqs|rpc)(\+\w+)?://", re.IGNORECASE)
#: A part of such a URL that is shorter may be any word.
_SHORTEST_PART = 10
#: A secret that is shorter is not looked for inside other texts: it may be any word.
SHORTEST = 6
#: One that is shorter than this only counts as a word of its own, so that the password "postgres" leaves "postgresql" alone.
SURE = 10
#: Levels of lists, tables and models that are shown.
_MAX_DEPTH = 16
#: Characters of a key's name that are looked at.
_MAX_NAME = 200
#: Characters that are masked beyond a cut and then dropped: a secret that the cut runs through is not recognised.
_OVERLAP = 4_000

#: Values whose text can't be a secret.
_PLAIN = (bool, int, float, Decimal, date, time, timedelta, UUID, PurePath)


class Hidden:
    """Secret values that are replaced wherever they stand, such as in an exception's text. With ``most``, only the last so many."""

    def __init__(self, most: int | None = None) -> None:
        self._values: dict[str, re.Pattern[str] | None] = {}
        self._longest_first: list[tuple[str, re.Pattern[str] | None]] = []
        self._most = most

    @property
    def longest(self) -> int:
        """Characters of the longest one."""
        return len(self._longest_first[0][0]) if self._longest_first else 0

    def add(self, values: Iterable[str]) -> None:
        """Hide these too, also as they stand in URLs. Short ones are left out."""
        shapes = (form for value in values if len(value) >= SHORTEST for form in (value, quote(value, safe=""), quote_plus(value), quote(value)))
        if not (forms := dict.fromkeys(shapes)).keys() - self._values.keys():
            return
        self._values |= {form: None if len(form) >= SURE else re.compile(rf"(?<!\w){re.escape(form)}(?!\w)") for form in forms}
        for oldest in list(self._values)[: len(self._values) - self._most] if self._most else ():
            del self._values[oldest]
        # One secret may be the beginning of another.
        self._longest_first = sorted(self._values.items(), key=lambda item: len(item[0]), reverse=True)

    def clean(self, text: str) -> str:
        """The text without them."""
        # Not one pattern of alternatives: that compares each secret at each character. str.find takes time in proportion to the text.
        for value, word in self._longest_first:
            if value in text:
                text = text.replace(value, MASK) if word is None else word.sub(MASK, text)
        return text


def secrets_in(value: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """The secret texts in settings or options: by type, by the names of their keys, and the passwords of URLs."""
    if isinstance(value, Secret | SecretStr | SecretBytes):
        yield from _secrets_of(value)
    elif isinstance(value, str):
        yield from [value] if _is_secret(key) else _url_secrets(value)
    elif value is None or isinstance(value, _PLAIN) or depth >= _MAX_DEPTH:
        return
    elif (fields := _fields_of(value)) is not None:
        for name, inner in fields:
            yield from secrets_in(inner, key if _is_secret(key) else text_of(name), depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from secrets_in(inner, key, depth + 1)
    else:
        yield from secrets_in(text_of(value), key)


def _secrets_of(secret: Secret[Any] | SecretStr | SecretBytes) -> Iterator[str]:
    raw = secret.get_secret_value()
    held = text_of(raw)
    if _SERVER.match(held):
        yield from _url_secrets(held)
    elif isinstance(raw, Secret | SecretStr | SecretBytes) or _fields_of(raw) is not None or isinstance(raw, list | tuple | set | frozenset):
        yield from secrets_in(raw, "secret")
    else:
        yield held
        yield from _parts_of(held)


def _parts_of(url: str) -> Iterator[str]:
    """The parts of a URL that may be its secret. The host of a web address is none."""
    host = web["host"] if (web := _WEB.match(url)) else None
    yield from (part for part in re.split(r"[:/@?&=#]+", url) if "://" in url and len(part) >= _SHORTEST_PART and part != host)


def _url_secrets(text: str) -> Iterator[str]:
    if "://" not in text:
        return
    found = [match[0].removeprefix(match["head"]).removesuffix("@") for match in _URL_PASSWORD.finditer(text)]
    found += [match["value"] for match in _URL_PARAMETER.finditer(text) if _is_secret_parameter(match["name"])]
    for written in found:
        yield from (written, unquote(written))


def mask(value: Any, key: str = "", depth: int = 0, *, clean: Callable[[str], str] | None = None) -> Any:
    """A value as JSON that is safe to show under ``key``: secrets are replaced, also inside mappings, lists, models and dataclasses. Any other
    object becomes its text. ``clean`` makes each text safe; unset, it is :func:`mask_url`.
    """
    clean = clean or mask_url
    if value is None or (isinstance(value, _PLAIN) and not isinstance(value, Enum)):
        return value if value is None or isinstance(value, bool | int | float) else clean(text_of(value))
    if _is_secret(key) and value not in ("", b""):
        return MASK
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Secret | SecretStr | SecretBytes):
        return _masked_secret(value)
    if depth >= _MAX_DEPTH:
        return CUT
    if (fields := _fields_of(value)) is not None:
        return {clean(text_of(name)): mask(inner, text_of(name), depth + 1, clean=clean) for name, inner in fields}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask(inner, "", depth + 1, clean=clean) for inner in value]
    return clean(text_of(value))


def _masked_secret(secret: Secret[Any] | SecretStr | SecretBytes) -> str:
    shown = mask_url(text_of(secret.get_secret_value()))
    # A malformed URL may hide its password anywhere.
    return shown if _SERVER.match(shown) and shown.count("@") == shown.count(f":{MASK}@") else MASK


def _fields_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The names and values of a model, a dataclass, a named tuple or a mapping; None for anything else."""
    if isinstance(value, BaseModel):
        return list(value)
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=False))
    return None


def text_of(value: Any) -> str:
    """Any value as text. One that can't tell its text is named by its class."""
    try:
        return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    except Exception:
        return f"({type(value).__name__})"


def _is_secret(key: str) -> bool:
    return _names_a_secret(key[:_MAX_NAME])


@lru_cache(maxsize=1024)
def _names_a_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key))


def _is_secret_parameter(name: str) -> bool:
    """Of a URL's query: there, a plain ``key`` is commonly an access key."""
    return "key" in name.lower() or _is_secret(name)


def mask_url(text: str) -> str:
    """The text with the password of each URL in it replaced, secrets in their queries, and assignments such as ``password=x``."""
    if "://" in text:
        text = _URL_TOKEN.sub(rf"\g<head>{MASK}@", _URL_PASSWORD.sub(rf"\g<head>{MASK}@", text))
        text = _URL_PARAMETER.sub(_masked_parameter, text)
    if "=" in text or '":' in text or "':" in text:
        text = _ASSIGNED.sub(rf"\g<head>{MASK}", text)
    return text


def _masked_parameter(match: re.Match[str]) -> str:
    return match["head"] + MASK if _is_secret_parameter(match["name"]) else match[0]


def masked_start(text: str, most: int, clean: Callable[[str], str], longest: int = 0) -> str:
    """The first ``most`` characters of a text, or slightly fewer, made safe by ``clean``. It is cut before it is masked: masking megabytes takes
    long. ``longest`` is the length of the longest secret that ``clean`` looks for.
    """
    if len(text) <= most:
        return clean(text)
    overlap = max(_OVERLAP, longest)
    return clean(text[: most + overlap])[:-overlap] + CUT


def masked_end(text: str, most: int, clean: Callable[[str], str], longest: int = 0) -> str:
    """:func:`masked_start` for the last characters, such as those of a traceback."""
    if len(text) <= most:
        return clean(text)
    overlap = max(_OVERLAP, longest)
    return CUT + clean(text[-most - overlap :])[overlap:]


def escape_controls(text: str) -> str:
    """The text with control characters as escapes, such as ``\\n``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
