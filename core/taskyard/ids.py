"""The numbers of events, log lines and deliveries as the outside world sees them.

They are drawn from sequences that all namespaces share: by two numbers of its own, a client would know how much everybody else did in between. So an
installation that has access keys shows each number under another one, by a permutation that only its own processes can turn back. Numbers keep their
meaning as ids, and lose their order. Without keys there is one namespace, and numbers are shown as they are.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from taskyard.tables import installation_secrets

_NAME = "ids"
#: A Feistel network over 63 bits, in halves of 32 and 31. Six rounds of a pseudorandom function are beyond what counting pairs can undo.
_ROUNDS = 8
_LEFT, _RIGHT = 32, 31


@dataclass(frozen=True, slots=True)
class PublicIds:
    """The permutation of one installation; without a ``secret`` every number stands for itself."""

    secret: bytes | None = None

    def hide(self, number: int) -> int:
        """What the outside world sees of a number from 0 to 2**63 - 1."""
        return self._permuted(number, range(_ROUNDS)) if self.secret else number

    def reveal(self, shown: int) -> int:
        """The number that is shown so. For one that never was shown it is some number that is most likely nobody's."""
        return self._permuted(shown, range(_ROUNDS - 1, -1, -1)) if self.secret else shown

    def _permuted(self, number: int, rounds: range) -> int:
        left, right = number >> _RIGHT, number & ((1 << _RIGHT) - 1)
        for round_ in rounds:
            # Each round changes one half by the other, and is its own inverse.
            if round_ % 2:
                right ^= self._mixed(round_, left) >> (64 - _RIGHT)
            else:
                left ^= self._mixed(round_, right) >> (64 - _LEFT)
        return left << _RIGHT | right

    def _mixed(self, round_: int, half: int) -> int:
        assert self.secret is not None
        made = hashlib.blake2b(half.to_bytes(4), digest_size=8, key=self.secret, salt=bytes([round_]))
        return int.from_bytes(made.digest())


#: Numbers as they are, within the installation.
PLAIN = PublicIds()


def make(connection: Connection) -> None:
    """From here on numbers are hidden: the first access key is being made."""
    values = {"name": _NAME, "value": secrets.token_bytes(32)}
    connection.execute(insert(installation_secrets).values(**values).on_conflict_do_nothing())


def of(connection: Connection) -> PublicIds:
    """How this installation shows its numbers now."""
    return PublicIds(connection.execute(select(installation_secrets.c.value).where(installation_secrets.c.name == _NAME)).scalar())
