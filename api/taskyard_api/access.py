"""Who may call: access keys, the scopes that each call needs, and an end to guessing."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar

import structlog
from fastapi import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from taskyard import keys
from taskyard.errors import TaskyardError, Unavailable
from taskyard.keys import Caller
from taskyard_api import problems
from taskyard_api.errors import Forbidden, RateLimited, Unauthorized, WrongKey
from taskyard_api.service import CALLER, Service
from taskyard_api.watch import ROUTED

log = structlog.get_logger(__name__)
K = TypeVar("K")
V = TypeVar("V")

#: Seconds that a key is trusted without asking the database again: so long after its end it may still be let in.
FRESH = 5.0
#: The same for the metrics while the database is away, for they tell of it.
STALE = 600.0
METRICS = "/metrics"
#: Wrong keys from one address: so many at once, and so many a second after that.
BURST, PER_SECOND = 30.0, 0.5
#: Keys and addresses that are remembered at most.
REMEMBERED = 10_000

#: Where a call that lasts finds how to ask again whether its caller may call.
CHECK = "taskyard.check"

Need = keys.Scope | Literal["open", "any"]
OPEN: Final = "open"
ANY_KEY: Final = "any"
#: (method, path, scope): the first that matches decides. A call that none matches needs `admin`; a test wants a rule for each.
RULES: Sequence[tuple[str, str, Need]] = (
    ("GET", "/health/(live|ready)", OPEN),
    ("GET", "/docs(/oauth2-redirect)?|/openapi.json", ANY_KEY),
    ("GET", METRICS, "metrics:read"),
    # Queues are the installation's, and so are their counts: they tell of every namespace.
    ("GET", "/api/v1/queues", "all-namespaces"),
    (".*", "/api/v1/queues(/.*)?", "admin"),
    ("POST", "/api/v1/deliveries/.*", "admin"),
    ("GET", "/api/v1/(deliveries|events|task-types|tasks|plugins|notifiers)(/.*)?", "tasks:read"),
    ("POST|PATCH", "/api/v1/tasks(/.*)?", "tasks:write"),
)
_RULES = [(re.compile(f"({method}) ({path})"), scope) for method, path, scope in RULES]


def rule_for(method: str, path: str) -> Need | None:
    """The scope that a call needs, OPEN, or ANY_KEY; None if no rule knows it."""
    return next((scope for pattern, scope in _RULES if pattern.fullmatch(f"{method} {path}")), None)


class Gate:
    """Lets in who has a key, as plain ASGI, and leaves in the request's scope who that is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        #: Until when a key that was wrong is not looked up again, on the monotonic clock.
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                scope[CALLER] = await self._admit(scope)
                scope[CHECK] = partial(self._admit, scope)
            except TaskyardError as error:
                response = await problems.on_taskyard_error(Request(scope), error)
                await response(scope, receive, send)
                return
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Caller | None:
        needed = rule_for(scope["method"], scope[ROUTED])
        if needed == OPEN:
            return None
        caller = await self._caller(scope)
        structlog.contextvars.bind_contextvars(key=caller.name)
        if needed is None:
            # An address that nothing answers is told so to everybody with a key; a call that was forgotten above is nobody's but the admins'.
            needed = "admin" if _is_routed(scope) else ANY_KEY
        if needed != ANY_KEY and not caller.may(needed):
            raise Forbidden(caller.name, needed)
        return caller

    async def _caller(self, scope: Scope) -> Caller:
        shown = _key_of(scope)
        if not shown:
            raise Unauthorized
        if key_id := keys.id_of(shown.decode("ascii", "replace")):
            # For every line about this request, also of one that is refused: the id is no secret.
            structlog.contextvars.bind_contextvars(key_id=key_id)
        digest = hashlib.sha256(shown).digest()
        known, now = self._known.get(digest), time.monotonic()
        if known and now < min(known.fresh_until, known.ends):
            return known.caller
        if not keys.is_shaped(key := shown.decode("ascii", "replace")):
            raise WrongKey
        if now < self._wrong.get(digest, 0.0):
            raise self._refusal(scope, now)
        caller = await self._look_up(scope, key, known, now)
        if caller is None:
            self._known.pop(digest, None)
            _keep(self._wrong, digest, now + FRESH)
            raise self._refusal(scope, now)
        self._remember(digest, caller, now)
        return caller

    def _refusal(self, scope: Scope, now: float) -> TaskyardError:
        """For a key of which the database has said that it is wrong. Keys are never refused before that: a right one must not suffer from the
        wrong ones of others at its address, such as that of a proxy.
        """
        wait = self._failures.take(_network(scope), now)
        return RateLimited("This access key is wrong, and too many wrong ones came from this address.", wait) if wait else WrongKey()

    async def _look_up(self, scope: Scope, key: str, known: Known | None, now: float) -> Caller | None:
        service: Service = scope["app"].state.service
        try:
            return await service.key_lookups.look_up(key)
        except Unavailable:
            if known and scope[ROUTED] == METRICS and now < min(known.fresh_until - FRESH + STALE, known.ends):
                return known.caller
            raise

    def _remember(self, digest: bytes, caller: Caller, now: float) -> None:
        ends = float("inf") if caller.expires_in is None else now + caller.expires_in
        _keep(self._known, digest, Known(caller, now + FRESH, ends))


@dataclass(frozen=True, slots=True)
class Known:
    """A key that was looked up. Times are of the monotonic clock."""

    caller: Caller
    fresh_until: float
    ends: float


class Failures:
    """How often each address was wrong lately, as a token bucket."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """Count one more wrong key; 0, or the seconds until the address may be wrong again."""
        left = self._tokens(address, now)
        if left < 1:
            return (1 - left) / PER_SECOND
        _keep(self._left, address, (left - 1, now))
        return 0.0

    def _tokens(self, address: str, now: float) -> float:
        left, at = self._left.get(address, (BURST, now))
        return min(BURST, left + (now - at) * PER_SECOND)


def _keep(table: OrderedDict[K, V], key: K, value: V) -> None:
    """Remember a value, and forget the oldest of too many."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > REMEMBERED:
        table.popitem(last=False)


def _key_of(scope: Scope) -> bytes:
    """The key that came with a request (RFC 6750, section 2.1, or X-API-Key); empty if none did."""
    found: dict[bytes, bytes] = dict(scope["headers"])
    kind, _, key = found.get(b"authorization", b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else found.get(b"x-api-key", b"").strip()


def _network(scope: Scope) -> str:
    """Where a request comes from: an IPv4 address, or the 64 bits of an IPv6 one that a customer has all of."""
    address = str((scope.get("client") or ("", 0))[0])
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address


def _is_routed(scope: Scope) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].router.routes)
