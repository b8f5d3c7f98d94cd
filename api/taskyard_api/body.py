"""From a request's body to a JSON object, with every way it can be none told as a problem."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from jiter import from_json

from taskyard.errors import InvalidInput
from taskyard.storable import MAX_DEPTH, MAX_DIGITS, find_inexact, find_unstorable
from taskyard.validation import MAX_PROBLEMS, unknown_names
from taskyard_api.errors import MalformedBody, UnsupportedMedia

#: Tasks that one request may submit.
MAX_BATCH = 1000
# The parser's own bounds lie somewhat beyond ours, which are checked with the place named as a JSON pointer.
_BOUNDS = {"recursion limit exceeded": f"nested deeper than {MAX_DEPTH} levels", "number out of range": f"a number of more than {MAX_DIGITS} digits"}


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    The parser bounds depth and the length of numbers, and refuses NaN, lone surrogates, bytes that are not UTF-8 and a name that is there
    twice: parsers differ in which of the two counts (RFC 8259, section 4), and who checked the one may have meant the other. A number that would
    change is refused as well.

    Raises:
        UnsupportedMedia, MalformedBody, InvalidInput: it is no JSON by its header, by its text, or no object.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMedia(f"Expected Content-Type: application/json, not {kind or 'nothing'}.")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise UnsupportedMedia(f"Expected a body without Content-Encoding, not {coding[:100]}: it is not unpacked.")
    text = await request.body()
    try:
        value = from_json(text, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise _malformed(text, str(error)) from None
    if not isinstance(value, dict):
        raise InvalidInput("The request's body is not an object.", [("", "expected a JSON object")])
    if inexact := find_inexact(text):
        raise InvalidInput("A number of the request can't be kept as it was sent.", [inexact])
    return value


def _malformed(text: bytes, said: str) -> MalformedBody:
    """The refusal of a text that the parser can't read, with the place if Python can read it."""
    pointer, wrong = _place(text) or ("", _wrong(said))
    return MalformedBody(f"The request's body is not JSON that can be read: {wrong}.", [(pointer, wrong)])


def _place(text: bytes) -> tuple[str, str] | None:
    """Where a NaN, an infinity or a lone surrogate is: Python and others write them, though they are not JSON."""
    try:
        return find_unstorable(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _wrong(said: str) -> str:
    """The parser's words, with our bounds in them. It repeats a name that is there twice, however long: the place is at the end."""
    for word, bound in _BOUNDS.items():
        said = said.replace(word, bound)
    return said if len(said) <= 200 else f"{said[:100]}...{said[-60:]}"


def batch_of(body: dict[str, Any]) -> list[Any]:
    """What a batch's body has in ``tasks``.

    Raises:
        InvalidInput: there are none, or too many, or there is something else.
    """
    tasks = body.get("tasks")
    problems = unknown_names(body, ["tasks"], "name")
    if not isinstance(tasks, list) or not 1 <= len(tasks) <= MAX_BATCH:
        problems.append(("/tasks", f"expected a list of 1 to {MAX_BATCH} tasks"))
    if problems or not isinstance(tasks, list):
        raise InvalidInput("The batch is not as expected.", problems[:MAX_PROBLEMS])
    return tasks
