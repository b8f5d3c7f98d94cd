"""What Schemathesis can't know of this API, each as narrow as it can be. Loaded by schemathesis.toml."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, get_origin
from urllib.parse import parse_qsl, urlsplit

import schemathesis
from hypothesis import strategies as st

from taskyard_api.conditions import IF_MATCH
from taskyard_api.parameters import DeliveryQuery, LogQuery, TaskQuery

#: What only the service can make: a generator's own is refused, with a 422 that points to it, however well it is formed.
TOKENS = {"/cursor", "/Last-Event-ID"}
_FIELDS = [field for model in (TaskQuery, DeliveryQuery, LogQuery) for field in model.model_fields.items()]
#: Query parameters that take one value wherever they are.
SINGLE = {name for name, _ in _FIELDS} - {name for name, field in _FIELDS if get_origin(field.annotation) is list}


# Of all times, JSON Schema can name no range.
schemathesis.openapi.format("date-time", st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 29), timezones=st.just(UTC)).map(datetime.isoformat))


def whole(body: Any) -> Any:
    """JSON Schema takes 5.0 for an integer; the document's description says that this service does not."""
    if isinstance(body, dict):
        return {name: whole(value) for name, value in body.items()}
    if isinstance(body, list):
        return [whole(value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Whole numbers are sent as such. A new body has a new Idempotency-Key, as the document says: the generator takes one from the examples for all."""
    case.body = whole(case.body)
    key = (case.headers or {}).get("Idempotency-Key")
    if key and case.meta is not None and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = hashlib.sha256(f"{key}{case.path}{case.body!r}".encode()).hexdigest()


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Is it a failure? All are, but for refusals of right input that no document could foretell, and repeated single parameters.

    Of a parameter that takes one value and is sent twice, the last value counts: an array that is no array for the service.
    """
    if type(failure).__name__ == "AcceptedNegativeData":
        names = [name for name, _ in parse_qsl(urlsplit(response.request.url).query, keep_blank_values=True)]
        return not any(names.count(name) > 1 for name in SINGLE)
    if type(failure).__name__ != "RejectedPositiveData" or response.status_code != 422:
        return True
    places = {error["pointer"] for error in response.json().get("errors", ())}
    if places and places <= TOKENS:
        return False
    if places in ({"/If-Match"}, {"/If-None-Match"}):
        # Schemathesis has ETags of its own for these two, and loses the quotes of some on their way: what the document's pattern refuses was not right.
        [place] = places
        return bool(re.fullmatch(IF_MATCH["schema"]["pattern"], response.request.headers[place[1:]]))
    return True
