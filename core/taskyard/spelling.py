"""Did you mean: the one place that compares a mistyped name with the known ones, in bounded time, whoever sent it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Final

#: A longer name is no slip of the hand: none of ours is nearly as long.
LONGEST: Final = 100
#: Pairs of characters that are compared at most, which takes some 20 ms. Clients can invent names that are known from then on, such as queues'.
_MOST_PAIRS: Final = 200_000


def near_names(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Up to ``most`` of the known names that are like ``name``, the nearest first. Where very many are known, it looks at some of them."""
    if len(name) > LONGEST:
        return []
    return difflib.get_close_matches(name, list(_affordable(name, known)), n=most)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known name nearest to ``name``, after a space; or nothing."""
    near = near_names(name, known)
    return f" Did you mean {near[0]!r}?" if near else ""


def _affordable(name: str, known: Iterable[str]) -> Iterator[str]:
    pairs = 0
    for one in known:
        # Of such different lengths, no two names are alike enough for a hint.
        if len(one) > 3 * len(name) or len(name) > 3 * len(one):
            continue
        pairs += len(name) * len(one)
        if pairs > _MOST_PAIRS:
            return
        yield one
