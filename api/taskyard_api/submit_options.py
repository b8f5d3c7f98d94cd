"""What a submission says beside its body: an Idempotency-Key, ``validate_only``, ``Prefer: wait``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from fastapi import Request

from taskyard.errors import InvalidInput
from taskyard.validation import unknown_names
from taskyard_api.parameters import refuse_repeated
from taskyard_api.prefer import wait_of

MAX_KEY = 255
# A String of Structured Fields (RFC 8941, 3.3.3), or the same without quotes, as most clients write it.
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x7e]+")
#: The same for the document.
KEY_PATTERN = rf'^("([ !#-\[\]-~]|\\["\\]){{1,{MAX_KEY}}}"|[!#-~]{{1,{MAX_KEY}}})$'
_TRUTH = {"true": True, "false": False}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Makes the request safe to repeat: the same key with the same body makes no second task. It is answered 200, "
    "`Idempotency-Replayed: true`, and what the first one made as it stands now. Up to 255 visible characters, in quotes or not.",
    # No example: who generates requests would send it with different bodies.
    "schema": {"type": "string", "pattern": KEY_PATTERN},
}


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a submission is meant."""

    key: str | None = None
    validate_only: bool = False
    wait: int | None = None


def submit_options(request: Request) -> SubmitOptions:
    """Read the options of a submission.

    Raises:
        InvalidInput: a header or a query parameter is not as expected.
    """
    headers = request.headers
    return SubmitOptions(_key(headers.getlist("idempotency-key")), _validate_only(request.scope["query_string"]), wait_of(headers.getlist("prefer")))


def check_options(request: Request) -> SubmitOptions:
    """The options of a call that only checks: it takes none.

    Raises:
        InvalidInput: there is a query parameter.
    """
    for name, _ in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        raise InvalidInput(f"No such query parameter: {name[:100]}.", unknown_names([name], [], "query parameter"))
    return SubmitOptions(validate_only=True)


def _key(given: list[str]) -> str | None:
    if not given:
        return None
    if len(given) == 1:
        value = given[0].strip()
        quoted = _QUOTED.fullmatch(value)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
        if (quoted or _BARE.fullmatch(value)) and 0 < len(key) <= MAX_KEY:
            return key
    raise InvalidInput("The Idempotency-Key is not as expected.", [("/Idempotency-Key", f"expected one header of 1 to {MAX_KEY} visible ASCII characters")])


def _validate_only(query: bytes) -> bool:
    if not query:
        return False
    found = False
    sent = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    refuse_repeated((name for name, _ in sent), ["validate_only"])
    for name, value in sent:
        if name != "validate_only":
            raise InvalidInput(f"No such query parameter: {name[:100]}.", unknown_names([name], ["validate_only"], "query parameter"))
        if value not in _TRUTH:
            raise InvalidInput("The query is not as expected: validate_only.", [("/validate_only", "expected true or false")])
        found = _TRUTH[value]
    return found
