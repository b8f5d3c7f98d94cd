"""The filters and tests of message templates: Jinja2's that are bounded by what they are given, and others in a bounded form."""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, do_int, do_round, make_attrgetter
from jinja2.tests import TESTS
from jinja2.utils import htmlsafe_json_dumps, pass_environment
from markupsafe import Markup, soft_str

from taskyard.template_limits import MAX_ARGUMENT, MAX_LIST, bounded, check_time, room_after
from taskyard.templates import MAX_MESSAGE, shown

#: Decimal places that ``round`` takes, blanks that ``tojson`` indents by, digits that ``int`` reads.
MAX_PRECISION, MAX_INDENT, MAX_DIGITS = 15, 8, 100
#: Filters of Jinja2 that make nothing longer than a small multiple of what they are given, and take time in proportion to it.
_FILTERS = (
    "abs capitalize count d default dictsort e escape filesizeformat first float items last length list lower map max min reject "
    "rejectattr safe select selectattr sort string title truncate unique upper urlencode wordcount"
)
_TESTS = (
    "!= < <= == > >= boolean defined divisibleby eq equalto escaped even false float ge greaterthan gt in integer iterable le lessthan lower lt "
    "mapping ne none number odd sameas sequence string true undefined upper"
)


def filters() -> Mapping[str, Callable[..., Any]]:
    """By name."""
    chosen: dict[str, Any] = {name: FILTERS[name] for name in _FILTERS.split()}
    own: dict[str, Any] = {"flat": _flat, "int": _integer, "join": _join, "replace": _replace, "round": _rounded, "striptags": _without_tags}
    own |= {"sum": _total, "tojson": _json, "trim": _trimmed}
    return {name: _limited(function) for name, function in (chosen | own).items()}


def tests() -> Mapping[str, Callable[..., Any]]:
    """By name."""
    chosen: dict[str, Any] = {name: TESTS[name] for name in _TESTS.split()}
    return {name: _limited(function) for name, function in chosen.items()}


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that takes and answers what is bounded: ``tojson`` twice doubles each backslash."""

    @functools.wraps(function)
    def limited(*arguments: Any, **named: Any) -> Any:
        for argument in (*arguments, *named.values()):
            bounded(argument)
        made = function(*arguments, **named)
        return _collected(made) if isinstance(made, Iterator) else bounded(made)

    return limited


def _collected(values: Iterator[Any]) -> list[Any]:
    """What a filter makes one after the other: each may be long, and all of them together much longer."""
    room, made = MAX_MESSAGE, []
    for value in values:
        check_time()
        made.append(value)
        room = room_after(value, room - 1)
        if room < 0 or len(made) > MAX_LIST:
            raise SecurityError(f"a list of more than {MAX_LIST} members or {MAX_MESSAGE} characters")
    return made


def _put_together(parts: Iterable[str], between: str = "") -> str:
    """The texts as one; counted first."""
    room, kept = MAX_MESSAGE, []
    for part in parts:
        check_time()
        kept.append(part)
        room -= len(part) + len(between)
        if room < 0:
            raise SecurityError(f"a text of more than {MAX_MESSAGE} characters")
    return between.join(kept)


def _join(values: Iterable[Any], d: str = "") -> str:
    """Put texts together."""
    return _put_together(map(shown, values), d)


def _replace(text: Any, old: str, new: str) -> str:
    """Replace a part of a text wherever it stands."""
    text = shown(text)
    if len(text) + text.count(old) * len(new) > MAX_MESSAGE:
        raise SecurityError(f"a text of more than {MAX_MESSAGE} characters")
    return str(text).replace(old, new)


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested data as (name, value) pairs, names with dots; what is empty is left out. ``{"a": {"b": 1}}`` is ``[("a.b", 1)]``."""
    found: list[tuple[str, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else ():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(inner, list) and any(isinstance(member, dict) for member in inner):
            found += _flat({str(number): member for number, member in enumerate(inner, 1)}, full)
        elif isinstance(inner, dict):
            found += _flat(inner, full)
        elif inner not in (None, "", [], ()):
            found.append((full, inner))
    return found[:MAX_LIST]


def _rounded(value: Any, precision: int = 0, method: Any = "common") -> Any:
    """Round a number. Jinja2 computes ``10 ** precision``."""
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise SecurityError(f"round takes a precision from -{MAX_PRECISION} to {MAX_PRECISION}")
    return do_round(value, precision, method)


def _json(value: Any, indent: int | None = None) -> Markup:
    """JSON that is safe inside HTML, as Jinja2's own."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
        raise SecurityError(f"tojson takes an indent from 0 to {MAX_INDENT}")
    return htmlsafe_json_dumps(value, dumps=lambda _: _put_together(json.JSONEncoder(indent=indent, sort_keys=True).iterencode(value)))


@pass_environment
def _total(environment: jinja2.Environment, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Add numbers. Of lists, each step would copy all that came before."""
    if not isinstance(start, int | float):
        raise SecurityError("sum adds numbers")
    return sum(values if attribute is None else map(make_attrgetter(environment, attribute), values), start)


def _integer(value: Any, default: Any = 0, base: int = 10) -> Any:
    """A whole number; ``default`` where it is none."""
    return default if isinstance(value, str) and len(value) > MAX_DIGITS else do_int(value, default, base)


def _trimmed(value: Any, chars: str | None = None) -> str:
    """Drop characters at both ends."""
    if chars is not None and len(chars) > MAX_ARGUMENT:
        raise SecurityError(f"trim takes {MAX_ARGUMENT} characters at most")
    return soft_str(value).strip(chars)


def _without_tags(value: Any) -> str:
    """A text without HTML's tags and comments. MarkupSafe's own copies the text for each of them."""
    text = _without(_without(str(value), "<!--", "-->"), "<", ">")
    return html.unescape(" ".join(text.split()))


def _without(text: str, opening: str, closing: str) -> str:
    parts, at = [], 0
    while (start := text.find(opening, at)) != -1 and (end := text.find(closing, start)) != -1:
        parts.append(text[at:start])
        at = end + len(closing)
    return "".join(parts) + text[at:]
