"""One request seen from outside: its id, how long it took, and one log line."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable

import structlog
from starlette.types import Scope

from taskyard.metrics import OTHER, Tally
from taskyard_api.measures import REQUESTS

log = structlog.get_logger(__name__)
_stdlib = logging.getLogger(__name__)

HEADER = b"x-request-id"
#: What a client may send as its id; anything else is replaced, so that it can break neither a header nor a log.
_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
#: Statuses of requests that were refused for who asked, by what name, or how often.
REFUSED = (401, 403, 421, 429)
#: Seconds after which a request is worth a line.
SLOW = 1.0
#: Where a route leaves the id of the task that it made, in the request's scope.
TASK_ID = "taskyard.task_id"
#: Where the edge leaves the path that is routed, without the prefix of `api.root_path`.
ROUTED = "taskyard.routed"


def address_of(scope: Scope) -> str:
    """Where a request came from: an IP address, or nothing by a unix socket. Behind a proxy that is trusted, what its X-Forwarded-For says."""
    return str((scope.get("client") or ("",))[0])


class Watch:
    """Begins with the request. ``id`` is the client's X-Request-ID, or one of ours."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]], own: Tally) -> None:
        given = next((value for name, value in headers if name == HEADER and _ID.fullmatch(value)), None)
        self.id = given.decode() if given else os.urandom(16).hex()
        self.header = (HEADER, self.id.encode())
        self.status: int | None = None
        self._given = given is not None
        self._own = own
        self._began = time.perf_counter()

    def end(self, scope: Scope, base: str) -> None:
        """Count the request, and log it: for everybody if it went wrong, took long or its client gave it an id, or else for debugging."""
        seconds = time.perf_counter() - self._began
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        route = _template(scope, base)
        self._own.observe(REQUESTS, seconds, method, route, str(self.status or "none"))
        level = self._level(seconds)
        # Asked first: a line that nobody reads would cost a tenth of what a loaded service can do.
        if _stdlib.isEnabledFor(level):
            task_id = scope.get(TASK_ID) or scope.get("path_params", {}).get("task_id")
            more = {"task_id": task_id} if task_id else {}
            if self.status in REFUSED:
                # The gate has bound the key's id, wherever one was shown.
                more |= {"address": address_of(scope)}
            log.log(level, "request.done", method=method, path=route, status=self.status, seconds=round(seconds, 4), **more)

    def _level(self, seconds: float) -> int:
        status = self.status or 500
        if status >= 500:
            return logging.WARNING
        return logging.INFO if status >= 400 or self._given or seconds >= SLOW else logging.DEBUG


def _template(scope: Scope, base: str) -> str:
    """The path with names for its variable parts, such as /api/v1/tasks/{task_id}."""
    path: str | None = getattr(scope.get("route"), "path_format", None)
    if path is None:
        return OTHER
    return base + path if scope[ROUTED].startswith(base) and not path.startswith(base) else path
