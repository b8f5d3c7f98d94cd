"""A bound on code that nobody can trust to come back: a plugin's import."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds between two interruptions of code that swallows the first.
_AGAIN = 0.5


class TimeIsUp(BaseException):
    """Raised in the limited code. No Exception, so that an `except Exception` there doesn't take it."""

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(place)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeIsUp` in the block when it takes longer; it tells where the block stood.

    By SIGALRM, which costs two system calls and ends Python code, sleeps, locks and reads. It can't end a loop inside a C extension.
    In another thread than the main one, and where there is no SIGALRM (Windows), there is no limit; nor where a timer that somebody
    else has set ends sooner. That one goes on afterwards.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    theirs, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    if 0 < theirs <= seconds:
        signal.setitimer(signal.ITIMER_REAL, theirs, interval)
        yield
        return
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if theirs:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, theirs - (time.monotonic() - began)), interval)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise TimeIsUp(f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}" if frame else "an unknown place")
