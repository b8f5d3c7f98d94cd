"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits that double from ``first`` to ``longest`` seconds, each shortened at random by up to a quarter, so that processes that failed together
    do not all try again together.
    """

    first: float
    longest: float
    failures: int = field(default=0, init=False)

    def next(self) -> float:
        """It failed (again): the seconds to wait."""
        # The exponent is bounded: a float overflows after a thousand doublings.
        wait = min(self.longest, self.first * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return wait * random.uniform(0.75, 1.0)

    def reset(self) -> None:
        """It worked: the next failure waits ``first`` seconds again."""
        self.failures = 0
