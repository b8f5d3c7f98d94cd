"""What a process knows of its writes: have they worked lately, or is a trial needed to say so?"""

from __future__ import annotations

import time

#: Seconds for which a submission that was committed shows that others would be, too.
PROVEN_FOR = 60.0
#: Bytes that a trial writes: as little as it can, or, once a write has failed, more than a page has left when only a bit of the disk is free.
SMALL, LARGE = 16, 8192


class WriteRecord:
    """Writes of one event loop."""

    def __init__(self) -> None:
        self._proven_until = 0.0
        self._failed = False

    def worked(self) -> None:
        """A submission was committed, or a trial was written."""
        self._failed = False
        self._proven_until = time.monotonic() + PROVEN_FOR

    def failed(self) -> None:
        """The database did not take a write."""
        self._failed = True

    def trial_bytes(self) -> int:
        """The size of the trial that a look at readiness makes; 0: none is needed."""
        if self._failed:
            return LARGE
        return SMALL if time.monotonic() >= self._proven_until else 0
