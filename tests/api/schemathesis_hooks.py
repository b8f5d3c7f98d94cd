"""What Schemathesis can't know of this API, each as narrow as it can be. Loaded by schemathesis.toml."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import schemathesis
from hypothesis import strategies as st

from taskyard_api.conditions import IF_MATCH

#: What only the service can make: a generator's own is refused, with a 422 that points to it, however well it is formed.
TOKENS = {"/cursor", "/Last-Event-ID"}


# Of all times, JSON Schema can name no range.
schemathesis.openapi.format("date-time", st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 29), timezones=st.just(UTC)).map(datetime.isoformat))


def whole(body: Any) -> Any:
    """JSON Schema takes 5.0 for an integer; the document's description says that this service does not."""
    if isinstance(body, dict):
        return {name: whole(value) for name, value in body.items()}
    if isinstance(body, list):
        return [whole(value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _ids(url: str) -> list[str]:
    return [value for name, value in parse_qsl(urlsplit(url).query) if name in ("id", "parent_id", "task_id")]


def _is_uuid(text: str) -> bool:
    with suppress(ValueError):
        return bool(UUID(text))
    return False


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Whole numbers are sent as such. A new body has a new Idempotency-Key, as the document says: the generator makes short ones, and some twice."""
    case.body = whole(case.body)
    key = (case.headers or {}).get("Idempotency-Key")
    if key and case.meta is not None and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = hashlib.sha256(f"{key}{case.path}{case.body!r}".encode()).hexdigest()


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Is it a failure? All are, but for refusals of right input that no document could foretell, and tasks of which only some fields were asked for."""
    if type(failure).__name__ == "JsonSchemaError" and "fields=" in urlsplit(response.request.url).query:
        return False
    # In OpenAPI 3.1 a stream's schema is that of its whole text; this compares each event with it.
    if failure.title == "SSE event violates schema":
        return False
    if type(failure).__name__ != "RejectedPositiveData" or response.status_code != 422:
        return True
    places = {error["pointer"] for error in response.json().get("errors", ())}
    if places and places <= TOKENS:
        return False
    # No JSON Schema says that the items of an array differ in one of their members.
    if places and all(re.fullmatch(r"/tasks/\d+/unique_key", place) for place in places):
        return False
    # A link that Schemathesis has guessed fills in the id of something else, whatever the format of the parameter says.
    if places and all(re.fullmatch(r"/(id|parent_id|task_id)(/\d+)?", place) for place in places):
        return all(map(_is_uuid, _ids(response.request.url)))
    if places in ({"/If-Match"}, {"/If-None-Match"}):
        # Schemathesis has ETags of its own for these two, and loses the quotes of some on their way: what the document's pattern refuses was not right.
        [place] = places
        return bool(re.fullmatch(IF_MATCH["schema"]["pattern"], response.request.headers[place[1:]]))
    return True
