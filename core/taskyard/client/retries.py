"""Which calls are made again, and when: pure decisions."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx2

#: Nothing was sent: the request can be made again whatever it does.
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
#: What no repetition mends.
HOPELESS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.DecodingError)
#: The service, or a proxy before it, has not carried the request out, or nobody knows whether: only for calls that may be made twice.
PASSING = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is made again that found nobody, and how long the pauses are, in seconds.

    A pause doubles from ``first`` up to ``longest``, and is drawn at random between its half and its whole, so that clients that
    failed together do not come back together. A ``Retry-After`` is kept to; one of more than ``patience`` seconds is not waited for.
    """

    most: int = 5
    first: float = 0.2
    longest: float = 10.0
    patience: float = 60.0

    def pause(self, made: int, asked: float | None = None) -> float | None:
        """Seconds until the next try after ``made`` of them; None: give up."""
        if made > self.most or (asked is not None and asked > self.patience):
            return None
        plain = min(self.longest, self.first * 2.0 ** min(made - 1, 30))
        return max(asked or 0.0, plain * random.uniform(0.5, 1.0))


def may_repeat_error(error: httpx2.RequestError, *, safe: bool) -> bool:
    """May a call be made again after this error? ``safe``: to make it twice does no harm."""
    return isinstance(error, NEVER_SENT) or (safe and not isinstance(error, HOPELESS))


def may_repeat_status(status: int, *, safe: bool) -> bool:
    """May a call be made again after this answer? What was limited was not carried out (RFC 6585, 4)."""
    return status == 429 or (safe and status in PASSING)
