"""What Postgres can keep, and Python can read back: JSON without NUL and lone surrogates, bounded in depth and size.

Whole numbers are kept digit by digit. Numbers with a fraction or an exponent are 64-bit floats wherever Python reads them, and PostgreSQL has no
negative zero: what would change on its way is refused where it comes in (:func:`find_inexact`, :func:`find_unstorable`).
"""

from __future__ import annotations

import json
import math
import re
from decimal import Context, Decimal
from typing import Any

MAX_DEPTH = 64
#: Digits of a whole number. JSON sets no bound, but Python reads no more than 4,300 by default.
MAX_DIGITS = 4000
#: What a client may put in a payload: its bytes as JSON (UTF-8), the names in one object, the characters of one string or name.
MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_NAMES = 10_000
MAX_TEXT = 1_000_000
_TOO_LONG = 10**MAX_DIGITS


def find_unstorable(value: Any, *, exactly: bool = False) -> tuple[str, str] | None:
    """The first place in a JSON value that Postgres would refuse: its JSON pointer and what is wrong, or None.

    ``jsonb`` takes no U+0000, no unpaired surrogate (PostgreSQL manual, 8.14) and no NaN; nesting is bounded so that no
    reader of a task needs a deep stack, and so is the length of numbers. With ``exactly`` also a place that it would change: a negative zero.
    """
    return None if _is_storable(value, 0) else _find(value, "", 0, exactly)


def _is_storable(value: Any, depth: int) -> bool:
    """What nearly every value is, found without putting pointers together."""
    if isinstance(value, str):
        return _is_storable_text(value)
    if isinstance(value, dict):
        return depth < MAX_DEPTH and all(_is_storable(item, depth + 1) and (not isinstance(key, str) or _is_storable_text(key)) for key, item in value.items())
    if isinstance(value, list):
        return depth < MAX_DEPTH and all(_is_storable(item, depth + 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value) and (value != 0.0 or not _is_negative_zero(value))
    return not isinstance(value, int) or abs(value) < _TOO_LONG


def _is_storable_text(text: str) -> bool:
    return "\x00" not in text and (text.isascii() or _text_problem(text) is None)


def _is_negative_zero(value: float) -> bool:
    return value == 0.0 and math.copysign(1.0, value) < 0.0


def _find(value: Any, pointer: str, depth: int, exactly: bool) -> tuple[str, str] | None:
    if isinstance(value, str):
        return (pointer, problem) if (problem := _text_problem(value)) else None
    if isinstance(value, float) and not math.isfinite(value):
        return pointer, "NaN and infinities are not JSON"
    if exactly and isinstance(value, float) and _is_negative_zero(value):
        return pointer, "a negative zero, which would be kept as 0.0; send 0.0"
    if isinstance(value, int) and abs(value) >= _TOO_LONG:
        return pointer, f"a number of more than {MAX_DIGITS} digits"
    if not isinstance(value, dict | list):
        return None
    if depth >= MAX_DEPTH:
        return pointer, f"nested deeper than {MAX_DEPTH} levels"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        here = f"{pointer}/{escape_pointer(str(key))}"
        if isinstance(key, str) and (problem := _text_problem(key)):
            return pointer, f"a key has {problem}"
        if found := _find(item, here, depth + 1, exactly):
            return found
    return None


def find_unstorable_json(text: str) -> tuple[str, str] | None:
    """:func:`find_unstorable` for JSON text that Pydantic wrote. Raises ValueError or RecursionError: Python can't read it.

    It is read only where its text gives cause: that takes long for a large value, which may come from an event loop, and is a tenth of the
    time that a task takes which returns nothing. (A short text has no number that is too long.)
    """
    cause = text.count("[") + text.count("{") > MAX_DEPTH or "\\u0000" in text or "NaN" in text or "Infinity" in text
    if not cause and len(text) < MAX_DIGITS:
        return None
    value = json.loads(text)
    return find_unstorable(value) if cause else None


# A number of up to 15 digits, with an exponent of up to two, is read back from a float as it was.
_SHAPES = bytes.maketrans(b"123456789.E+", b"000000000" + b"0e-")
_LONG, _FAR = b"0" * 16, (b"e000", b"e-000")
# Such a number, after what may stand before it. Text in quotes may look like it.
_NUMBERS = re.compile(r"(?:^|[\[:,\s])(-?(?=[0-9.]{16}|[0-9.]+[eE][+-]?[0-9]{3})[0-9]+(?=[.eE])(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
#: Characters of a number with a fraction or an exponent. The longest that is exactly a float's has 1,077.
_MAX_LITERAL = MAX_DIGITS


class _Inexact(float):
    """A float that is not the number that its text says. ``problem`` says why."""

    problem = ""


def find_nulled(value: Any, written: Any, pointer: str = "") -> tuple[str, str] | None:
    """The first NaN or infinity in ``value`` that its JSON, ``written``, has as null: its JSON pointer and what is wrong, or None."""
    if isinstance(value, float):
        return (pointer, f"expected a finite number, not {value}") if written is None and not math.isfinite(value) else None
    if isinstance(value, dict) and isinstance(written, dict):
        pairs = [(f"{pointer}/{escape_pointer(key)}", one, other) for one, (key, other) in zip(value.values(), written.items(), strict=False)]
    elif isinstance(value, list | tuple) and isinstance(written, list):
        pairs = [(f"{pointer}/{place}", one, other) for place, (one, other) in enumerate(zip(value, written, strict=False))]
    else:
        return None
    return next(filter(None, (find_nulled(one, other, place) for place, one, other in pairs)), None)


def find_inexact(text: bytes) -> tuple[str, str] | None:
    """The first number in JSON text that a 64-bit float would change: its JSON pointer and what is wrong, or None. The text can be read as JSON.

    That is one that overflows, falls to zero, or has digits that are not the float's own. Digits that a float has when it is written out with so
    many of them (as with C's ``%.17g``) are its own. Text without long digits or large exponents, which is nearly all text, is not read.
    """
    shape = text.translate(_SHAPES)
    if _LONG not in shape and not any(far in shape for far in _FAR):
        return None
    said = _NUMBERS.findall(text.decode("latin-1"))
    if said == list(map(repr, map(float, said))) or not any(isinstance(_marked(literal), _Inexact) for literal in said):
        return None
    return _find_marked(json.loads(text, parse_float=_marked), "")


def _find_marked(value: Any, pointer: str) -> tuple[str, str] | None:
    if isinstance(value, _Inexact):
        return pointer, value.problem
    if not isinstance(value, dict | list):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return next((found for key, item in items if (found := _find_marked(item, f"{pointer}/{escape_pointer(str(key))}"))), None)


def _marked(literal: str) -> float:
    """A number with a fraction or an exponent, marked if it is not what its text says."""
    if len(literal) > _MAX_LITERAL:
        return _inexact(0.0, f"a number of more than {_MAX_LITERAL} characters")
    number = float(literal)
    if repr(number) == literal or _is_its_own(number, literal):
        return number
    near = f"the nearest 64-bit float is {number!r}" if math.isfinite(number) else "no 64-bit float is so large"
    return _inexact(number, f"a number that would change: {near}; send it as text to keep every digit")


def _inexact(number: float, problem: str) -> _Inexact:
    made = _Inexact(number)
    made.problem = problem
    return made


def _is_its_own(number: float, literal: str) -> bool:
    if not math.isfinite(number):
        return False
    if number == 0.0:
        return not any(digit in literal.lower().partition("e")[0] for digit in "123456789")
    said = Decimal(literal)
    return said == Decimal(repr(number)) or Context(prec=len(said.as_tuple().digits)).plus(Decimal(number)) == said


def read_json(text: str | bytes) -> Any:
    """JSON that a person wrote, read as exactly as the service reads it. What can't be stored in it is the service's to say.

    Raises:
        ValueError: it is no JSON; an object has a name twice; a number would change. It says where.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_name_once)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if found := find_inexact(text.encode(errors="surrogatepass") if isinstance(text, str) else text):
        raise ValueError(f"{found[0] or 'the whole'}: {found[1]}")
    return value


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add() answers None
        raise ValueError(f"the name {twice[:100]!r} is there twice in one object")
    return made


def find_excess(payload: Any, text: str) -> tuple[str, str] | None:
    """The first place in a payload that is larger than it may be, as :func:`find_unstorable` tells it. ``text`` is the payload as :func:`to_json`
    writes it.

    Whose text is short has no such place: then nothing is looked through.
    """
    if len(text) <= MAX_NAMES:
        return None
    if found := _find_excess(payload, ""):
        return found
    return ("", f"larger than {MAX_PAYLOAD_BYTES} bytes of JSON") if is_longer(payload, text, MAX_PAYLOAD_BYTES) else None


def is_longer(value: Any, text: str, most: int) -> bool:
    """Has a value more than ``most`` bytes as JSON in UTF-8? ``text`` is from :func:`to_json`: escaped as ASCII, it is never shorter than that."""
    return len(text) > most and len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")) > most


def _find_excess(value: Any, pointer: str) -> tuple[str, str] | None:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return pointer, f"a string of more than {MAX_TEXT} characters"
    if not isinstance(value, dict | list):
        return None
    if isinstance(value, dict) and (len(value) > MAX_NAMES or any(len(str(name)) > MAX_TEXT for name in value)):
        return pointer, f"an object of more than {MAX_NAMES} names" if len(value) > MAX_NAMES else f"a name of more than {MAX_TEXT} characters"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return next((found for name, item in items if (found := _find_excess(item, f"{pointer}/{escape_pointer(str(name))}"))), None)


def _text_problem(text: str) -> str | None:
    if "\x00" in text:
        return "the character U+0000, which can't be stored"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "an unpaired surrogate, which is not a character"
    return None


def storable_text(value: object, length: int | None = None) -> str:
    """Any value as text that Postgres takes: what it would refuse is escaped. One that can't tell its text is named by its class."""
    try:
        text = str(value)
    except Exception:
        text = f"({type(value).__name__})"
    return text.replace("\x00", "\\0").encode(errors="backslashreplace").decode()[:length]


def escape_pointer(key: str) -> str:
    """One key as a token of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")


def to_json(value: Any) -> str:
    """JSON text for a ``jsonb`` parameter; refuses NaN and infinities with ValueError."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """What Postgres has kept. What Python would refuse to read is told as text: no stored row makes a list unreadable."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text, parse_int=_whole_number)
    except (ValueError, RecursionError):
        return "(JSON that can't be read here)"


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits
