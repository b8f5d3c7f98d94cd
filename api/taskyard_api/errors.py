"""What only HTTP can get wrong: bodies that are too large, of another kind, or no JSON; and callers who may not call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from taskyard.errors import InvalidInput, TaskyardError


class TooLarge(TaskyardError):
    """The request's body is larger than this service takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request's body is larger than {limit} bytes.")


class PayloadTooLarge(TaskyardError):
    """A payload is larger than its namespace may submit. ``problems`` names each place by its JSON pointer."""

    def __init__(self, limit: int, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(f"A payload is larger than {limit} bytes, which is what this namespace may submit.")
        self.problems = tuple(problems)


class BodyTooSlow(TaskyardError):
    """The request's body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request's body did not arrive within {seconds:g} seconds.")


class MalformedBody(InvalidInput):
    """The request's body is not JSON."""


class UnsupportedMedia(InvalidInput):
    """The request's body is of a kind that this service does not read."""


class Unauthorized(TaskyardError):
    """This service asks for an access key: Authorization: Bearer ty_..., or X-API-Key."""

    challenge = 'Bearer realm="taskyard"'


class WrongKey(Unauthorized):
    """The access key is none of this service's, has expired, or was revoked."""

    challenge = 'Bearer realm="taskyard", error="invalid_token"'


class Forbidden(TaskyardError):
    """The access key may not do this."""

    def __init__(self, name: str, scope: str) -> None:
        super().__init__(f"The key {name!r} may not do this: it needs the scope {scope}.")
        self.challenge = f'Bearer realm="taskyard", error="insufficient_scope", scope="{scope}"'


class ForeignPage(TaskyardError):
    """A web page of another origin may not change anything here. If it should, the operator names its origin in api.cors_origins."""


class UnknownHost(TaskyardError):
    """The service does not answer to this name."""

    def __init__(self, hosts: Sequence[str]) -> None:
        shown = repr(hosts[0][:100]) if len(hosts) == 1 else f"{len(hosts)} Host headers"
        super().__init__(
            f"This service does not answer to {shown}: a name can be made to point here by anybody. "
            "Use localhost or an IP address, or have the operator name the host in api.hosts (TASKYARD_API__HOSTS)."
        )


class RateLimited(TaskyardError):
    """Too many requests. ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class QuotaExceeded(RateLimited):
    """A namespace's quota is used up. ``headers`` tell of it."""

    def __init__(self, message: str, retry_after: float, headers: Mapping[str, str]) -> None:
        super().__init__(message, retry_after)
        self.headers = headers
