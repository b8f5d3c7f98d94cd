"""The requests that wait for a ledger's next commit: new ones, and those that PostgreSQL has refused so far.

One that is refused while others are written waits by itself, so that it holds up nobody. While nothing can be written, all wait together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence

from taskyard_worker.ledger_requests import Request

#: Seconds before refused requests are tried again: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class WaitingRequests:
    """Any thread adds; the ledger's thread takes, and says how that went. ``clock`` is a monotonic one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._new: list[Request] = []
        self._refused: list[Request] = []
        self._retry_at = 0.0
        self._nothing_works = False
        self._written_at = float("-inf")
        self.failures = 0
        """Times in a row that something was refused."""
        self.stopping = False

    def __len__(self) -> int:
        return len(self._new) + len(self._refused)

    def add(self, request: Request) -> None:
        """Have a request written with the next commit."""
        with self._changed:
            self._new.append(request)
            self._changed.notify()

    def stop(self) -> None:
        """Wait for nothing any more."""
        with self._changed:
            self.stopping = True
            self._changed.notify()

    def take(self) -> list[Request]:
        """Wait for requests that are to be tried now, the oldest first, and take them. None are left: it is time to stop."""
        with self._changed:
            while not (self.stopping or self._is_due()):
                self._changed.wait(max(0.0, self._retry_at - self._clock()) if self._refused else None)
            batch, self._new = self._new, []
            if self.stopping or self._clock() >= self._retry_at:
                batch, self._refused = self._refused + batch, []
            return batch

    def _is_due(self) -> bool:
        if self._clock() >= self._retry_at:
            return bool(self._new or self._refused)
        return bool(self._new) and not self._nothing_works

    def tried(self, batch: Sequence[Request], refused: Collection[Request]) -> list[Request]:
        """``refused`` of a batch could not be written. They are kept for another try; answers those whose patience is at its end."""
        now = self._clock()
        with self._changed:
            if len(refused) < len(batch):
                self._written_at = now
            given_up = [request for request in refused if self._gives_up(request, now)]
            self._refused += [request for request in refused if request not in given_up]
            if refused:
                self.failures += 1
                if now >= self._retry_at:
                    self._retry_at = now + min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10), LONGEST_PAUSE)
            elif not self._refused:
                self.failures = 0
            self._nothing_works = len(refused) == len(batch)
        return given_up

    def _gives_up(self, request: Request, now: float) -> bool:
        if request.refused_at is None:
            request.refused_at = now
        return request.patience == 0 or (now - request.refused_at >= request.patience and self._written_at > request.refused_at)
